"""Torn, changed and hostile files, a full disk, a folder without permission: one line, and nothing is lost."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint, claims, cli, records
from common.cli import launch
from common.data import images
from common.data.stream import ImageStream
from common.errors import UserError
from common.paths import ROOT
from papers.vit import weights
from papers.vit.audit import build
from papers.vit.config import PRESETS
from tests.test_checkpoint import state
from tests.test_data import cut, jpegs
from tests.test_papers import final_weights, records_of, smoke, what_was_measured
from tests.test_verdicts import record


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(capsys: pytest.CaptureFixture[str], paper: str, *argv: str) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        launch(paper, list(argv))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert line.startswith("error: ")
    return line


# ---- torn at every byte


def test_a_record_torn_or_changed_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = records.accept(record(80.0, 3), tmp_path)
    whole = path.read_bytes()
    for size in range(len(whole.rstrip())):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a valid record"):
            records.read(path)
        if not whole[size : size + 1].isspace():
            path.write_bytes(whole[:size] + bytes([whole[size] ^ 1]) + whole[size + 1 :])
            with pytest.raises(UserError):
                records.read(path)


def test_a_run_file_torn_anywhere_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smoke("gcn", tmp_path)
    path = tmp_path / "run.json"
    whole = path.read_bytes()
    for size in range(0, len(whole.rstrip()), 5):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"run\.json is damaged"):
            cli.saved_run(tmp_path)
    before = contents(tmp_path)
    assert "run.json is damaged" in refused(capsys, "gcn", "--resume", str(tmp_path))
    assert contents(tmp_path) == before


def test_claims_torn_anywhere_are_refused_or_whole_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that ends after a whole claim is a shorter file, which version control and a stale page tell of."""
    whole = min((path.read_bytes() for path in claims.PAPERS.glob("*/claims.toml")), key=len)
    name = claims.PaperClaims.model_validate(claims.tomllib.loads(whole.decode())).paper.name
    known = [claim.model_dump() for claim in claims.load(name).claim]
    monkeypatch.setattr(claims, "PAPERS", tmp_path)
    (tmp_path / name).mkdir()
    read = 0
    for size in range(0, len(whole), 61):
        (tmp_path / name / "claims.toml").write_bytes(whole[:size])
        try:
            found = [claim.model_dump() for claim in claims.load.__wrapped__(name).claim]
        except UserError:
            continue
        read += 1
        assert found[:-1] == known[: len(found) - 1]
    assert read < size / 122


def test_a_checkpoint_torn_or_changed_at_any_place_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1.0), 0.0)
    checkpoint.save(tmp_path, 2, state(2.0), 0.0)
    newest = tmp_path / "step-000000002"
    for name in ("state.pt", "manifest.json"):
        whole = (newest / name).read_bytes()
        last = len(whole.rstrip()) if name == "manifest.json" else len(whole)
        for place in range(0, last, max(1, len(whole) // 50)):
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :]):
                (newest / name).write_bytes(damaged)
                if name == "state.pt" or damaged == whole[:place]:
                    assert not checkpoint.intact(newest), (name, place)
                restored = state(9.0)
                with pytest.warns(UserWarning, match="passed over") if not checkpoint.intact(newest) else _quiet():
                    step, _ = checkpoint.load(tmp_path, restored)
                assert restored["inner"]["count"] == (2 if checkpoint.intact(newest) else 1), (name, place, step)
        (newest / name).write_bytes(whole)
    assert checkpoint.load(tmp_path, state(9.0))[0] == 2


class _quiet:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


# ---- data


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.99999])
def test_a_torn_shard_is_one_line(
    part: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "mirror/hub/ylecun/mnist/mnist"
    jpegs(folder, 30, files=1)
    (shard,) = folder.iterdir()
    shutil.copy(shard, folder / "test-00000-of-00001.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(len(whole) * part)])
    before = contents(tmp_path)
    preset = next(name for name, cfg in claims.presets("vae").items() if cfg.dataset == "ylecun/mnist")
    out = ("--data-dir", str(tmp_path / "mirror"), "--output-dir", str(tmp_path / "run"))
    line = refused(capsys, "vae", "--preset", preset, "--device", "cpu", *out)
    assert "ylecun/mnist" in line
    assert {name: digest for name, digest in contents(tmp_path).items() if name.startswith("mirror")} == before
    assert not records_of(tmp_path / "run")


@pytest.mark.parametrize("part", [0.0, 0.4, 0.9, 0.99999])
def test_a_stream_that_breaks_off_is_one_line(part: float, tmp_path: Path) -> None:
    folder = tmp_path / "hub/some/jpegs/data"
    jpegs(folder, 40)
    last = max(folder.iterdir())
    whole = last.read_bytes()
    if part != 0.4:
        last.write_bytes(whole[: int(len(whole) * part)])
    else:  # its footer is there, what it points at is not
        last.write_bytes(whole[: len(whole) // 4] + bytes(len(whole) // 2) + whole[3 * len(whole) // 4 :])

    def in_order() -> None:
        list(ImageStream("some/jpegs", "train", tmp_path, 40, 4, cut, workers=2).once())

    def shuffled() -> None:
        stream = ImageStream("some/jpegs", "train", tmp_path, 40, 4, cut, seed=1, workers=2, window=5)
        for step in range(10):
            stream(step)

    for way in (in_order, shuffled):
        with pytest.raises(UserError, match=r"some/jpegs.*(breaks off|damaged|image \d+ of epoch)"):
            way()


def test_a_connection_that_is_lost_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpegs(tmp_path / "hub/some/jpegs/data", 40)
    stream = ImageStream("some/jpegs", "train", tmp_path, 40, 4, cut, workers=2)
    rows = list(stream.data)

    def lost() -> Iterator[dict]:
        yield from rows[:10]
        raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(stream, "data", lost())
    said = r"some/jpegs \(train, after 8 images of epoch 0\) breaks off .*ConnectionResetError: Connection reset"
    with pytest.raises(UserError, match=said):
        list(stream.once())


def test_data_that_is_not_the_declared_one_is_refused_or_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = claims.load("vae")
    other = claims.Data(name="synthetic/8x8x1", source="drawn", fingerprint="sha256:" + "0" * 64)
    monkeypatch.setattr(claims, "load", lambda paper: facts.model_copy(update={"data": [other]}))
    argv = ("--preset", "smoke", "--device", "cpu", "--output-dir")
    found = images.load("synthetic/8x8x1", None).fingerprint
    line = refused(capsys, "vae", *argv, str(tmp_path / "refused"))
    assert f"synthetic/8x8x1 is not the declared one (its fingerprint is {found[:19]}…" in line
    assert not records_of(tmp_path / "refused")
    with pytest.raises(SystemExit) as stop:
        launch("vae", [*argv, str(tmp_path / "said"), "--other-data"])
    assert stop.value.code == 0
    (made,) = records_of(tmp_path / "said")
    assert made.data["synthetic/8x8x1"] == found


# ---- weights


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["weights.pt", "weights.npz"])
def test_weights_that_would_run_code_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".npz"):
        np.savez(path, **{"head/kernel": np.array(Payload(tmp_path / "ran"), dtype=object)})
    else:
        torch.save({"model": Payload(tmp_path / "ran")}, path)
    assert not (tmp_path / "ran").exists()
    model = build(PRESETS["smoke"])
    with pytest.raises(UserError, match="holds no weights"):
        weights.load(model, path)
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="holds no weights"):
            weights.load(model, path)
    assert not (tmp_path / "ran").exists()


def test_a_graph_that_would_run_code_or_is_torn_is_refused(papers_data: Path, tmp_path: Path) -> None:
    from papers.gcn import data

    raw = tmp_path / "planetoid/Cora/raw"
    shutil.copytree(papers_data / "planetoid/Cora/raw", raw)
    whole = data.load("Planetoid/Cora", tmp_path).fingerprint
    for file in sorted(raw.iterdir()):
        content = file.read_bytes()
        for size in {0, 1, 2, len(content) // 3, len(content) // 2, len(content) - 2}:
            file.write_bytes(content[:size])
            try:
                found = data.load("Planetoid/Cora", tmp_path).fingerprint
            except UserError:
                continue
            assert found != whole, (file.name, size)
        file.write_bytes(content)
    import pickle

    (raw / "ind.cora.x").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), 2))
    with pytest.raises(UserError, match="is damaged"):
        data.load("Planetoid/Cora", tmp_path)
    assert not (tmp_path / "ran").exists()


# ---- no room, no permission

RUN = ["--preset", "smoke", "--device", "cpu", "--checkpoint-minutes", "0", "--train-steps", "4"]
LIMITED = """
import resource, sys
from common.cli import launch
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
launch("vae", sys.argv[2:])
"""


def limited(size: int, *argv: str) -> subprocess.CompletedProcess[str]:
    """A run that may write no file larger than `size` bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(size), *argv]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_last_one(tmp_path: Path) -> None:
    smoke("vae", tmp_path / "whole", *RUN)
    torn = tmp_path / "torn"
    size = max(path.stat().st_size for path in (tmp_path / "whole").rglob("state.pt"))
    done = limited(size - 1, *RUN, "--output-dir", str(torn))
    said = f"checkpoint at step 1 could not be written to {torn}/checkpoints: {size / 2**20:.1f} MiB are more than"
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr
    done = limited(2**30, "--resume", str(torn))
    assert done.returncode == 0, done.stderr
    assert what_was_measured(torn) == what_was_measured(tmp_path / "whole")
    assert final_weights(torn) == final_weights(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
def test_a_full_disk_and_a_folder_without_permission(tmp_path: Path) -> None:
    """On a tmpfs of its own: room for one checkpoint, then for all; and as a user who may not write."""
    smoke("vae", tmp_path / "whole", *RUN)
    size = max(path.stat().st_size for path in (tmp_path / "whole").rglob("state.pt"))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={(3 * size // 2 // 4096 + 4) * 4096}", "none", small], check=True
    )
    try:
        torn = small / "run"
        done = limited(2**30, *RUN, "--output-dir", str(torn))
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert re.search(
            r"checkpoint at step 2 could not be written .* the disk is full, [\d.]+ of [\d.]+ MiB are", line
        )
        assert [path.name for path in (torn / "checkpoints").iterdir()] == ["step-000000001"]
        assert checkpoint.intact(torn / "checkpoints/step-000000001")
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        done = limited(2**30, "--resume", str(torn))
        assert done.returncode == 0, done.stderr
        assert what_was_measured(torn) == what_was_measured(tmp_path / "whole")
        assert final_weights(torn) == final_weights(tmp_path / "whole")
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        done = limited(2**30, *RUN, "--output-dir", str(small / "other"))
        assert done.returncode == 2
        assert "Read-only file system" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log, after checkpoints have gone well."""
    from common.run import Run

    def full(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "log.jsonl")

    monkeypatch.setattr(Run, "log", full)
    line = refused(capsys, "vae", *RUN, "--output-dir", str(tmp_path / "run"))
    assert f"{tmp_path / 'run'} cannot be written: [Errno 13] Permission denied: 'log.jsonl'" in line
