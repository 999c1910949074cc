"""Where and from what a number was made: sources, libraries, device, memory."""

import ctypes
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.paths import ROOT


def circumstances(device: torch.device) -> dict[str, Any]:
    """The record's fields that are known when a run ends."""
    return {
        "versions": library_versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "peak_memory_mib": round(peak_memory_mib(device), 1),
    }


def platform_of(device: torch.device) -> dict[str, Any]:
    """What a run that is to repeat bit for bit must find again."""
    return {"device": device_name(device), "threads": torch.get_num_threads(), "versions": library_versions()}


def origin(paper: str, began: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record's fields that hold when a run starts: commit, and whether the sources it uses differ from it.

    Without git they are "unknown" and None.

    Args:
        began: the same when a resumed run began; one half of it may be of other sources.
    """
    sources = ("common", f"papers/{paper}/*.py", "pyproject.toml", "constraints.txt")
    try:
        commit, dirty = _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--", *sources))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": None}
    if began and not dirty:
        try:
            between = f"{began.get('commit')}..{commit}"
            dirty = bool(began.get("dirty") or _git("diff", "--name-only", between, "--", *sources))
        except subprocess.CalledProcessError:  # a commit that is not here
            dirty = True
    return {"commit": commit, "dirty": dirty}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def library_versions() -> dict[str, str]:
    """Versions of python and of those libraries in use that can move a number."""
    found = {"python": platform.python_version()}
    for name in ("torch", "accelerate", "numpy", "numba", "scipy", "datasets", "transformers", "torch_geometric"):
        if name in sys.modules:
            found[name] = version(name)
    return found


def device_name(device: torch.device) -> str:
    """`NVIDIA H200`, or `CPU (AMD EPYC, 2 cores)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{device.type.upper()} ({model}, {os.cpu_count()} cores)"


def keep_pages(keep: bool = True) -> None:
    """Let glibc's allocator keep the memory of large tensors for the next ones; it would hand each back, and the system
    would fill the next one's pages with zeros (a quarter of the time of an update of 64 experts).

    keep False: as the allocator settles by itself. Without effect where the allocator is another.
    """
    settings = (
        {-4: 0, -1: 2**31 - 1} if keep else {-4: 65_536, -1: 2**26, -3: 2**25}
    )  # M_MMAP_MAX, _TRIM_, _MMAP_THRESHOLD
    try:
        allocator = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for name, value in settings.items():
        allocator(name, value)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory: of the tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
