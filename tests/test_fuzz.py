"""Damaged and made-up input is accepted or refused: the quick version of `tests/fuzzing.py`, and a million."""

import json
from pathlib import Path

import pytest

from common import records
from common.cli import launch, saved_run
from common.errors import UserError
from tests.fuzzing import fuzz
from tests.test_verdicts import record


def test_some_inputs() -> None:
    done = fuzz(5_000, 0)
    assert done.pop("refused") > 2_000
    assert sum(done.values()) > 4_990


@pytest.mark.long
def test_a_million_inputs() -> None:
    done = fuzz(1_000_000, 1)
    assert sum(done.values()) - done["refused"] == 1_000_000


def test_a_value_of_several_lines_is_refused_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("gcn", ["--preset", "one\ntwo\rthree"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"paper": 1, "argv": "x", "processes": 1}', "\ufeff{}", "null"],
)
def test_a_damaged_run_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        saved_run(tmp_path)


def test_a_folder_that_cannot_be_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / ("x" * 5000), tmp_path / "file"):
        with pytest.raises(UserError, match=r"run\.json cannot be read: (File name too long|Not a directory)"):
            saved_run(folder)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "", "a b", "<img>", '"onload=x'])
def test_a_record_names_no_path_and_no_markup(name: str, tmp_path: Path) -> None:
    """Its pictures lie beside it, under names that can hold neither; so can its paper and its preset."""
    path = records.accept(record(80.0, 3), tmp_path)
    fields = json.loads(path.read_text())
    shown = {"pictures": {name: {"alt": "A grid", "sha256": "0" * 64}}}
    for change in (shown, {"paper": name}, {"preset": name + "/"}):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(UserError, match="not a valid record"):
            records.read(path)
