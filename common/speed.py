"""What a paper's `speed.py` says: work that is timed, ours and that of those who would do it instead.

A step is a training step (or another piece of work) on inputs made beforehand. The same work means the same sizes,
batch, precision and optimiser; `tools.bench` counts parameters and products of every contender, and records them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import UserError

PEERS = "PAPERS_PEERS"  # environment: folder of checkouts of those peers that are in no package index

# Numbers of 4 bytes that an update reads or writes for each parameter: parameter, gradient and moments are read,
# parameter and moments written
WORDS = {"none": 0, "sgd": 3, "momentum": 5, "adagrad": 5, "adam": 7, "rmsprop": 9}


class Missing(Exception):
    """A peer is not here; the message says how to get it."""


@dataclass(frozen=True)
class Step:
    """A contender, ready to run.

    Attributes:
        run: does the work once.
        parameters: numbers that an update changes.
    """

    run: Callable[[], object]
    parameters: int = 0


@dataclass(frozen=True)
class Peer:
    """Somebody else's way.

    Attributes:
        source: the package whose version is recorded, or the folder of its checkout.
        build: makes its step; raises Missing or ImportError where it is not here.
        same: False where it does not do the same work; `note` says what differs. It is shown, and not counted.
    """

    source: str
    build: Callable[[], Step]
    note: str = ""
    same: bool = True


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        what: sizes, batch, optimiser, precision; one line for the table.
        ours: makes our step.
        peers: name -> peer.
        optimizer: a key of WORDS.
        flops: floating-point operations of matrix products and of convolutions that the work needs; None: as torch
            counts them in our step. Given where compiled code or transforms hide them.
    """

    what: str
    ours: Callable[[], Step]
    peers: dict[str, Peer] = field(default_factory=dict)
    optimizer: Literal["none", "sgd", "momentum", "adagrad", "adam", "rmsprop"] = "none"
    flops: tuple[float, float] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Growth:
    """How our step grows with a size that the paper speaks of.

    Attributes:
        what: the size's name.
        step: size -> our step.
    """

    what: str
    sizes: tuple[int, ...]
    step: Callable[[int], Step]


def training(
    modules: nn.Module | list[nn.Module], optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
) -> Step:
    """Forward pass, backward pass and update."""

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value

    every = [modules] if isinstance(modules, nn.Module) else modules
    return Step(run, sum(p.numel() for m in every for p in m.parameters() if p.requires_grad))


def checkout(folder: str, address: str) -> Path:
    """A peer that a user has cloned.

    Raises:
        Missing: it is not there.
    """
    place = os.environ.get(PEERS, "")
    path = Path(place).expanduser() / folder
    if not place or not path.is_dir():
        raise Missing(f"git clone {address} into a folder, and name the folder with --peer-dir or ${PEERS}")
    return path


def module_at(path: Path, name: str) -> Any:
    """A file of a checkout as a module.

    Raises:
        UserError: the file is not there.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise UserError(f"{path} is not there: is the checkout complete?")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
