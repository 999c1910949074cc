"""Records: immutable, checked when read, written whole or not at all."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.records import (
    CURVE_POINTS,
    Picture,
    _digest_of,
    _lines,
    accept,
    keep,
    load_all,
    read,
    thin,
    write_atomically,
)
from tests.test_verdicts import record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = accept(record(80.0, 3), tmp_path)
    assert path.name.startswith("a-")
    assert path.name.endswith("-s3.json")
    again = read(path)
    assert again.model_copy(update={"hash": ""}) == record(80.0, 3)
    assert [r.seed for r in load_all("toy", tmp_path)] == [3]


def test_one_seed_has_one_record(tmp_path: Path) -> None:
    accept(record(80.0, 3), tmp_path)
    with pytest.raises(UserError, match="exists already"):
        accept(record(81.0, 3), tmp_path)
    accept(record(80.0, 3), tmp_path)  # the same one again is no harm
    accept(record(81.0, 3, config={"lr": 0.7}), tmp_path)
    assert len(list(load_all("toy", tmp_path))) == 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace("80.0", "99.0"), "hash differs"),
        (lambda text: text[: len(text) // 2], "not a valid record"),
        (lambda text: text.replace('"seed"', '"sead"'), "not a valid record"),
        (lambda text: "", "not a valid record"),
    ],
)
def test_a_changed_or_torn_record_is_refused(damage, said: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = accept(record(80.0, 3), tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=said):
        read(path)


@pytest.mark.parametrize("layout", [{"indent": 1}, {}, {"sort_keys": True}, {"separators": (",", ":")}])
def test_a_record_laid_out_otherwise_is_the_same_record(layout: dict, tmp_path: Path) -> None:
    path = accept(record(80.0, 3, curves={"loss": [[0.0, 1.0], [2.5, None]], "a]], b": [[0.0], [1e-9]]}), tmp_path)
    before = read(path)
    path.write_text(json.dumps(json.loads(path.read_text()), **layout))
    assert read(path) == before
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(UserError, match="hash differs"):
        read(path)


def test_the_quick_digest_is_the_digest(tmp_path: Path) -> None:
    """Of records as they are written; what it gives of others is never taken for theirs."""
    made = [
        record(80.0, 3),
        record(80.0, 3, curves={}),
        record(80.0, 3, curves={"b": [[0.0, 1.0], [2.5, None]], "a": [[0.0], [1e-9]]}, overrides={"ü": [1, {"b": 2}]}),
        record(80.0, 3, compiled=True, data={"z": "1", "a": "2"}),
        record(80.0, 3).model_copy(update={"pictures": {"grid": Picture(alt='A "grid", quoted', sha256="0" * 64)}}),
        *list(load_all("moe"))[:40],
    ]
    for one in made:
        assert _digest_of(_lines(one.to_json())) == one.digest()


def test_a_copy_with_another_configuration_has_another_name() -> None:
    first = record(80.0, 3)
    assert first.model_copy(update={"config": {"lr": 0.7}}).file_name() != first.file_name()


def test_a_renamed_record_is_refused(tmp_path: Path) -> None:
    path = accept(record(80.0, 3), tmp_path)
    renamed = path.rename(path.with_name(path.name.replace("s3", "s4")))
    with pytest.raises(UserError, match="should be named"):
        read(renamed)


def test_a_picture_lies_beside_its_record(tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(b"a picture")
    shown = Picture(alt="A grid", sha256=hashlib.sha256(b"a picture").hexdigest())
    kept = keep(record(80.0, 3).model_copy(update={"pictures": {"grid": shown}}), tmp_path / "run", tmp_path)
    path = accept(kept, tmp_path / "all", beside=tmp_path / "run")
    assert read(path).pictures == {"grid": shown}
    assert path.with_name(kept.picture_file("grid")).read_bytes() == b"a picture"
    assert kept.picture_file("grid") == path.stem + ".grid.png"
    assert kept.digest() != record(80.0, 3).digest()


def test_seeds_come_in_their_order(tmp_path: Path) -> None:
    for seed in (10, 9, 0, 100):
        accept(record(80.0, seed), tmp_path)
    assert [r.seed for r in load_all("toy", tmp_path)] == [0, 9, 10, 100]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=500))
def test_thinning_keeps_the_ends(values: list[float]) -> None:
    steps, kept = thin([float(i) for i in range(len(values))], list(values))
    assert len(steps) == len(kept) <= CURVE_POINTS
    assert steps[0] == 0
    assert steps[-1] == len(values) - 1
    assert json.dumps(kept)
