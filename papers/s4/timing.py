"""Tables 1 to 3 as measurements: seconds and memory of S4, of an LSSL and of Transformers, and how they grow."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.cost import now, slope
from papers.s4.kernel import S4Kernel
from papers.s4.model import Attention, Layer, S4Net, Transformer

CLASSES, BYTES = 2, 256  # LRA's byte-level text


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Least time of several calls, after one to warm up: what others do to the machine only adds."""
    found = []
    for _ in range(repeats + 1):
        begun = now(device)
        work()
        found.append(now(device) - begun)
    return min(found[1:])


def mebibytes(work: Callable[[], object], device: torch.device) -> float:
    """Most memory of tensors that a call takes on top of what was there."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _Ledger() as ledger:
        work()
    return ledger.most / 2**20


class _Ledger(TorchDispatchMode):
    """Bytes of the tensors that operations make and that are still held; `most`: the peak. What was there before does
    not count. (The profiler knows this too, but talks about it on standard error.)"""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self.note(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self.note(tensor, made=True)
        return result

    def note(self, tensor: Any, made: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if made else 0
        if key not in self.known:
            self.known.add(key)
            self.held += size
            self.most = max(self.most, self.held)
            weakref.finalize(storage, self.freed, key, size)

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.held -= size


def training_step(model: nn.Module, *inputs: Tensor) -> Callable[[], None]:
    """Forward and backward pass of what a model makes of inputs."""

    def work() -> None:
        model.zero_grad(set_to_none=True)
        model(*inputs).square().mean().backward()

    return work


def s4_layer(h: int, state: int, length: int, kind: str = "s4") -> Layer:
    return Layer(kind, h, state, length, "legs", 1, True, False, True, 0.0, True, True)  # type: ignore[arg-type]


class Measurement:
    """One experiment, measured size by size: `at(i)` gives the numbers of sizes[i], `summary` the slopes of all."""

    def __init__(
        self, what: str, sizes: Sequence[int], device: torch.device, repeats: int, seed: int, *,
        width: int, state: int, depth: int, heads: int, mlp: int, batch: int, length: int,
    ) -> None:  # fmt: skip
        self.sizes, self.device, self.repeats, self.seed = list(sizes), device, repeats, seed
        self.width, self.state, self.depth, self.heads, self.mlp = width, state, depth, heads, mlp
        self.batch, self.length = batch, length
        self.at = {"scaling": self.scaling, "lssl": self.lssl, "transformers": self.transformers}[what]
        self.names = list({"scaling": SCALING, "lssl": LSSL, "transformers": TRANSFORMERS}[what])

    def made(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, Attention):
            model.initialise(torch.Generator().manual_seed(self.seed))  # type: ignore[operator]
        return model.to(self.device)

    def both(self, work: Callable[[], object]) -> tuple[float, float]:
        """(milliseconds, MiB)"""
        return 1e3 * seconds(work, self.device, self.repeats), mebibytes(work, self.device)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed)).to(self.device)

    def scaling(self, size: int) -> list[float]:
        """Table 1 at a length: layer and attention in training, the kernel alone, and one recurrent step.

        The last two are also taken at a state size as many times 64 as the length is 1,024 (Theorems 2 and 3).
        """
        layer = self.made(s4_layer(self.width, self.state, size))
        attention = self.made(Attention(self.width, 4, fused=False))
        u = self.noise(self.batch, self.width, size)
        found = [*self.both(training_step(layer, u))]
        found += self.both(training_step(_Sequence(attention), u))
        kernel: S4Kernel = layer.kernel  # type: ignore[assignment]

        def make() -> None:
            kernel.zero_grad(set_to_none=True)
            kernel(kernel.length).square().mean().backward()

        found.append(1e3 * seconds(make, self.device, 4 * self.repeats))
        larger = self.state * size // self.sizes[0]
        kernel = self.made(S4Kernel(self.width, larger, self.sizes[0], copies=1))  # type: ignore[assignment]
        found.append(1e3 * seconds(make, self.device, 4 * self.repeats))
        recurrence = kernel.recurrence()
        state, x = recurrence[0].new_zeros(self.batch, *recurrence[0].shape), u[..., 0]
        found.append(1e3 * seconds(lambda: kernel.step(x, state, recurrence), self.device, 10 * self.repeats))
        return found

    def lssl(self, size: int) -> list[float]:
        """Table 2 at a dimension, which is both H and N: the layer with a dense A, and S4."""
        u = self.noise(self.batch, size, self.length)
        return [
            value
            for kind in ("dense", "s4")
            for value in self.both(training_step(self.made(s4_layer(size, size, self.length, kind)), u))
        ]

    def transformers(self, size: int) -> list[float]:
        """Table 3 at a length: whole nets on bytes."""
        bytes_ = torch.randint(BYTES, (self.batch, size), generator=torch.Generator().manual_seed(self.seed))
        bytes_ = bytes_.to(self.device)
        models: list[nn.Module] = [
            Transformer(BYTES, CLASSES, self.depth, 256, self.heads, self.mlp, size, 0.0, fused)
            for fused in (False, True)
        ]
        models.append(
            S4Net(
                kind="s4",
                inputs=0,
                tokens=BYTES,
                classes=CLASSES,
                depth=self.depth,
                h=self.width,
                state=self.state,
                length=size,
                init="legs",
                copies=1,
                softplus=True,
                both_ways=False,
                glu=True,
                norm="layer",
                pre_norm=False,
                dropout=0.0,
                tied=True,
                early_dropout=True,
            )
        )
        return [value for model in models for value in self.both(training_step(self.made(model), bytes_))]

    def summary(self, table: np.ndarray) -> dict[str, float]:
        """Metrics of all sizes, from the (sizes, names) numbers that `at` gave."""
        columns = dict(zip(self.names, table.T.tolist(), strict=True))
        for top, bottom, name in RATIOS:
            if top in columns and bottom in columns:
                columns[name] = [a / b for a, b in zip(columns[top], columns[bottom], strict=True)]
        found = {
            f"{name}/{size}": value
            for name, values in columns.items()
            for size, value in zip(self.sizes, values, strict=True)
        }
        return found | {f"{name}_slope": slope(self.sizes, values) for name, values in columns.items()}


SCALING = ("layer_ms", "layer_mib", "attention_ms", "attention_mib", "kernel_ms", "kernel_state_ms", "step_state_ms")
LSSL = ("lssl_ms", "lssl_mib", "s4_ms", "s4_mib")
TRANSFORMERS = ("naive_ms", "naive_mib", "fused_ms", "fused_mib", "s4_ms", "s4_mib")
RATIOS = (  # (above, below, name): speed as the other's time in ours, memory as Tables 2 and 3 print it
    ("lssl_ms", "s4_ms", "lssl_speed_ratio"), ("lssl_mib", "s4_mib", "lssl_memory_ratio"),
    ("naive_ms", "s4_ms", "speed_ratio"), ("s4_mib", "naive_mib", "memory_ratio"),
    ("fused_ms", "s4_ms", "fused_speed_ratio"), ("s4_mib", "fused_mib", "fused_memory_ratio"),
)  # fmt: skip


class _Sequence(nn.Module):
    """Attention on (b, h, l)."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.transpose(1, 2), None)
