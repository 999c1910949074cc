"""Checkpoints that are whole or not there: written beside, hashed, synced, then renamed; verified before use."""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import NO_ROOM, UserError, no_room

KEEP = 2  # the newest, and one to fall back on


def capture(state: Any) -> Any:
    """What must be saved of a state: objects by their `state_dict`, arrays as tensors, dictionaries item by item."""
    if isinstance(state, torch.Tensor):
        return state.detach()
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state)
    if isinstance(state, dict):
        return {key: capture(value) for key, value in state.items()}
    if hasattr(state, "state_dict"):
        return _inner(state).state_dict()
    return state


def restore(state: Any, saved: Any) -> Any:
    """Put a saved state back: into objects, tensors, arrays and dictionaries in place. Returns what to keep."""
    if isinstance(state, torch.Tensor):
        with torch.no_grad():
            state.copy_(saved)
        return state
    if isinstance(state, np.ndarray):
        state[...] = saved.numpy()
        return state
    if isinstance(state, dict):
        for key in state:
            state[key] = restore(state[key], saved[key])
        return state
    if hasattr(state, "load_state_dict"):
        _inner(state).load_state_dict(saved)
        return state
    return saved


def _inner(state: Any) -> Any:
    """The module inside a DistributedDataParallel wrapper: a checkpoint fits any number of processes."""
    return state.module if isinstance(state, torch.nn.parallel.DistributedDataParallel) else state


def save(folder: Path, step: int, state: Any, seconds: float) -> None:
    """Write `folder/step-<step>` atomically and drop all but the newest KEEP.

    Raises:
        UserError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    temporary = folder / f".step-{step:09d}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with open(temporary / "state.pt", "wb") as file:
            torch.save(capture(state), file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {"step": step, "seconds": seconds, "files": {"state.pt": _sha256(temporary / "state.pt")}}
        with open(temporary / "manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        final = folder / f"step-{step:09d}"
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:  # torch's writer speaks of a full disk in a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        reason = f"{error}"
        if isinstance(error, RuntimeError) or error.errno in NO_ROOM:
            needed = _size(state)
            if isinstance(error, RuntimeError) and shutil.disk_usage(folder).free > needed:
                raise
            reason = no_room(folder, needed)
        raise UserError(
            f"checkpoint at step {step} could not be written to {folder}: {reason}; free space, then --resume"
        ) from None
    for old in _newest_first(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, state: Any) -> tuple[int, float]:
    """Restore the newest intact checkpoint into `state`: (step, seconds run so far); (0, 0.0) where there is none.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    step, seconds, saved = newest(folder)
    if saved is not None:
        restore(state, saved)
    return step, seconds


def newest(folder: Path) -> tuple[int, float, Any]:
    """(step, seconds run so far, saved state on the CPU) of the newest intact checkpoint; (0, 0.0, None) without any.

    A damaged checkpoint is passed over for the one before it, and said so.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    damaged = []
    for candidate in _newest_first(folder):
        try:
            step, seconds = _verified(candidate)
            saved = _interned(torch.load(candidate / "state.pt", weights_only=True, map_location="cpu"))
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            damaged.append(f"{candidate.name}: {(str(error) or type(error).__name__).splitlines()[0]}")
            continue
        for line in damaged:
            warnings.warn(f"damaged checkpoint passed over, {line}", stacklevel=3)
        return step, seconds, saved
    if damaged:
        raise UserError(f"no intact checkpoint in {folder} ({damaged[0]}); start the run anew")
    return 0, 0.0, None


def _verified(candidate: Path) -> tuple[int, float]:
    """(step, seconds) of a checkpoint whose files are those that were written; some error otherwise."""
    manifest = json.loads((candidate / "manifest.json").read_text(encoding="utf-8"))
    for name in {"state.pt", *manifest["files"]}:
        if _sha256(candidate / name) != manifest["files"][name]:
            raise ValueError(f"{name} does not have the hash that was written")
    return int(manifest["step"]), float(manifest["seconds"])


def intact(candidate: Path) -> bool:
    """Whether a checkpoint is whole."""
    try:
        _verified(candidate)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _interned(saved: Any) -> Any:
    """The same with one object for equal names: pickle writes a name once an object, so that an optimiser which begins
    after the resume would otherwise give the next file other bytes."""
    if isinstance(saved, dict):
        return {sys.intern(k) if isinstance(k, str) else k: _interned(v) for k, v in saved.items()}
    return [_interned(v) for v in saved] if isinstance(saved, list) else saved


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


class _Counter(io.RawIOBase):
    """Counts what is written to it."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, content: Any) -> int:
        self.bytes += len(content)
        return len(content)


def _size(state: Any) -> int:
    """Bytes that a checkpoint of a state takes."""
    torch.save(capture(state), counter := _Counter())  # type: ignore[arg-type]
    return counter.bytes


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
