"""The command line: presets, overrides, seeds, resuming, and one line for every mistake."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.claims import presets
from common.cli import describe, format_seeds, launch, parse, parse_seeds
from common.errors import UserError


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", (7,)), ("0-3", (0, 1, 2, 3)), ("0,3,5-7", (0, 3, 5, 6, 7)), ("1,1,0-1", (1, 0))]
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "3-1", "1,,2", "-1", "1.5", "0-99999999"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--seed"):
        parse_seeds(text)


def test_too_many_seeds_are_refused_before_they_are_listed() -> None:
    """Eight gigabytes otherwise."""
    tracemalloc.start()
    with pytest.raises(UserError, match="million"):
        parse_seeds("0-999999999")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(st.sets(st.integers(0, 300), min_size=1))
def test_seeds_written_are_seeds_read(seeds: set[int]) -> None:
    assert set(parse_seeds(format_seeds(tuple(seeds)))) == seeds


PAPER = "gcn"


def test_an_override_is_noted_and_deviates(capsys: pytest.CaptureFixture[str]) -> None:
    name = "lr"
    command = parse(PAPER, ["--preset", "laptop", f"--{name}", "0.123"])
    assert command.overrides == {name: 0.123}
    assert command.config.lr == 0.123
    text = describe(command)
    assert "lr = 0.123   (changed)" in text
    assert "→ 0.123" in text


def test_giving_a_field_its_preset_value_is_no_override() -> None:
    assert parse(PAPER, ["--lr", str(presets(PAPER)["laptop"].lr)]).overrides == {}


def test_a_wrong_type_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(PAPER, ["--preset", "smoke", "--lr", "much"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--lr" in said
    assert "much" in said


def test_help_lists_every_field_with_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(PAPER, ["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for field in type(presets(PAPER)["smoke"]).__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in said
    assert "(default: 0)" in said


def test_dry_run_prints_and_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        launch(PAPER, ["--preset", "laptop", "--dry-run", "--output-dir", str(folder)])
    assert stop.value.code == 0
    assert "lr = " in capsys.readouterr().out
    assert not folder.exists()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    arguments = ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        launch(PAPER, arguments)
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        launch(PAPER, arguments)
    assert stop.value.code == 2
    assert "already holds a run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        launch(PAPER, ["--resume", str(tmp_path), "--lr", "3"])
    assert stop.value.code == 2
    assert "leave out --lr" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        launch(PAPER, ["--resume", str(tmp_path)])
    assert stop.value.code == 0
    assert "complete" in capsys.readouterr().out


def test_cuda_where_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        launch(PAPER, ["--preset", "smoke", "--device", "cuda", "--output-dir", str(tmp_path / "x")])
    assert stop.value.code == 2
    assert "sees no CUDA device" in capsys.readouterr().err
