"""Checkpoints are whole or not there."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import checkpoint
from common.errors import UserError


def state(value: float) -> dict:
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(value)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    array = {"array": np.full(3, value), "count": int(value)}
    return {"model": model, "optimizer": optimizer, "tensor": torch.full((2,), value), "inner": array}


def same(a: dict, b: dict) -> bool:
    packed = [checkpoint.capture(s) for s in (a, b)]
    return json.dumps(packed[0], default=lambda t: t.tolist()) == json.dumps(packed[1], default=lambda t: t.tolist())


def test_everything_comes_back_in_place(tmp_path: Path) -> None:
    one, two = state(1.0), state(2.0)
    array = two["inner"]["array"]
    checkpoint.save(tmp_path, 7, one, 1.5)
    assert not same(one, two)
    assert checkpoint.load(tmp_path, two) == (7, 1.5)
    assert same(one, two)
    assert two["inner"]["array"] is array


def test_nothing_there_is_step_zero(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "none", state(1.0)) == (0, 0.0)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 12):
        checkpoint.save(tmp_path, step, state(step), 0.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000012"]


@pytest.mark.parametrize("size", [0, 1, 100, -1])
@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, name: str, size: int) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), 0.0)
    torn = tmp_path / "step-000000002" / name
    torn.write_bytes(torn.read_bytes()[:size])
    restored = state(9.0)
    with pytest.warns(UserWarning, match="damaged checkpoint passed over"):
        assert checkpoint.load(tmp_path, restored)[0] == 1
    assert same(restored, state(1.0)) or restored["inner"]["count"] == 1


def test_when_all_are_torn_it_says_so(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1.0), 0.0)
    (tmp_path / "step-000000001" / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoint.load(tmp_path, state(1.0))


def test_a_payload_is_not_executed(tmp_path: Path) -> None:
    """A pickle that would run code is refused, even with a fitting hash."""

    class Payload:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "ran",))

    folder = tmp_path / "step-000000001"
    folder.mkdir()
    torch.save({"model": Payload()}, folder / "state.pt")
    manifest = {"step": 1, "seconds": 0.0, "files": {"state.pt": checkpoint._sha256(folder / "state.pt")}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoint.load(tmp_path, state(1.0))
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    checkpoint.save(tmp_path, 1, state(1.0), 0.0)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20))
    large = state(2.0) | {"tensor": torch.zeros(3 * 2**18)}
    with pytest.raises(UserError, match=r"the disk is full, 2\.0 of 3\.0 MiB are missing; free space, then --resume"):
        checkpoint.save(tmp_path, 2, large, 0.0)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    assert checkpoint.load(tmp_path, state(3.0))[0] == 1
