"""Table 1 and the small claims of Section 3, measured; and where a trained network looks (the paper's appendix)."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.cost import now, slope
from common.random import generator
from papers.transformer.model import Attention, Transformer, sinusoids

WINDOW = 8  # k of the convolution, r of restricted attention

# ---- Table 1: the four layers, (n, d) -> (n, d), with a window (k or r) for those that have one


def self_attention(x: Tensor, window: int) -> Tensor:
    return (x @ x.T / math.sqrt(x.shape[1])).softmax(-1) @ x


def recurrent(x: Tensor, window: int) -> Tensor:
    w = _weights(x, 2)
    h, said = torch.zeros_like(x[:1]), []
    for row in x.split(1):
        h = torch.tanh(row @ w[0] + h @ w[1])
        said.append(h)
    return torch.cat(said)


def convolution(x: Tensor, window: int, dilation: int = 1) -> Tensor:
    w = _weights(x, window).permute(2, 1, 0)  # (d, d, k)
    past = F.pad(x.T[None], ((window - 1) * dilation, 0))
    return F.conv1d(past, w, dilation=dilation)[0].T


def restricted(x: Tensor, window: int) -> Tensor:
    near = F.pad(x, (0, 0, window - 1, 0)).unfold(0, window, 1)  # (n, d, r)
    a = (x[:, None] @ near / math.sqrt(x.shape[1])).softmax(-1)  # (n, 1, r)
    return (a @ near.mT)[:, 0]


LAYERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "self-attention": self_attention,
    "recurrent": recurrent,
    "convolution": convolution,
    "restricted": restricted,
}
TIMED = {  # lengths at which a layer is timed: long enough that no constant hides the slope
    "self-attention": (256, 512, 1_024),
    "recurrent": (512, 1_024, 2_048),
    "convolution": (4_096, 8_192, 16_384),
    "restricted": (4_096, 8_192, 16_384),
}


def _weights(x: Tensor, n: int) -> Tensor:
    """(n, d, d), the same for the same sizes."""
    d = x.shape[1]
    if x.is_meta:
        return torch.empty(n, d, d, device="meta")
    drawn = torch.randn(n, d, d, generator=generator("table1", n, d), dtype=torch.float32) / math.sqrt(d)
    return drawn.to(x)


def work() -> dict[str, float]:
    """Exponents of n, d and the window in each layer's floating-point operations, at n = 64, d = 32."""
    found = {}
    for name, layer in LAYERS.items():

        def flops(n: int = 64, d: int = 32, window: int = WINDOW, layer: Any = layer) -> int:
            with FlopCounterMode(display=False) as counter:
                layer(torch.empty(n, d, device="meta"), window)
            return counter.get_total_flops()

        found[f"work_exponent_n/{name}"] = math.log2(flops(n=128) / flops())
        found[f"work_exponent_d/{name}"] = math.log2(flops(d=64) / flops())
        found[f"work_exponent_window/{name}"] = math.log2(flops(window=2 * WINDOW) / flops())
    return found


def _depth(y: Tensor) -> int:
    """Operations on the longest path from y back to what it is made of."""
    order: list[Any] = []
    root: Any = y.grad_fn
    seen, stack = set(), [(root, False)]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    depth: dict[Any, int] = {}
    for node in order:
        depth[node] = 1 + max((depth[child] for child, _ in node.next_functions if child is not None), default=0)
    return depth[root]


def _sees(layer: Callable[[Tensor], Tensor], n: int) -> Tensor:
    """Which positions of the input an output depends on, (n, n): the gradient is not zero."""
    x = torch.randn(n, 2, generator=generator("sees"), dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x: layer(x).sum(1), x).abs().sum(2) > 0


def _one_transition(x: Tensor) -> Tensor:
    """The recurrent layer's states, each from its input and the state before it, which is at first the input itself."""
    w = _weights(x, 2)
    return torch.tanh(x @ w[0] + F.pad(x[:-1], (0, 0, 1, 0)) @ w[1])


def _unit(name: str, window: int, dilation: int) -> Callable[[Tensor], Tensor]:
    """What takes one step of a path."""
    if name == "recurrent":
        return _one_transition
    if name == "convolution":
        return lambda x: convolution(x, window, dilation)
    return lambda x: LAYERS[name](x, window)


def path(name: str, n: int, window: int = WINDOW) -> int:
    """Steps from the first input to the last output: layers, or transitions of the recurrent state.

    Convolutions are dilated by 1, k, k^2, ... from layer to layer, as in the paper's last column.
    """
    reach, steps = torch.eye(n), 0
    while not reach[-1, 0]:
        sees = _sees(_unit(name, window, window**steps), n)
        reach, steps = ((sees.float() @ reach) > 0).float(), steps + 1
    return steps


def lengths() -> dict[str, float]:
    """Exponents of n in sequential operations and in the longest path; log_k n of dilated convolutions."""
    found: dict[str, float] = {}
    for name, layer in LAYERS.items():
        deep = [_depth(layer(torch.randn(n, 2, requires_grad=True), WINDOW)) for n in (64, 128)]
        found[f"sequential_exponent/{name}"] = math.log2(deep[1] / deep[0])
        if name != "convolution":
            found[f"path_exponent/{name}"] = math.log2(path(name, 128) / path(name, 64))
    found["path/self-attention"] = path("self-attention", 64)
    found["path/convolution"] = path("convolution", 256, 4)
    return found


# ---- Sections 3.2.1 and 3.5


def shift_residual(d: int = 512, positions: int = 1_000, shifts: Sequence[int] = (1, 7, 64, 500)) -> float:
    """Largest |PE(pos + k) - M_k PE(pos)|, where M_k turns each pair of sine and cosine by k / 10000^(2i/d)."""
    pe, worst = sinusoids(positions + max(shifts), d), 0.0
    sine, cosine = pe[:positions, 0::2], pe[:positions, 1::2]
    for k in shifts:
        turn = k / 10000 ** (torch.arange(d // 2, dtype=torch.float64) / (d / 2))
        moved = pe[k : positions + k]
        worst = max(
            worst,
            float((moved[:, 0::2] - (sine * turn.cos() + cosine * turn.sin())).abs().max()),
            float((moved[:, 1::2] - (cosine * turn.cos() - sine * turn.sin())).abs().max()),
        )
    return worst


def dot_products(d_k: int, numbers: torch.Generator, n: int = 1_000_000) -> float:
    """Variance of n dot products of vectors of d_k independent normal components (footnote 4)."""
    total = torch.zeros(n)
    for _ in range(d_k):
        total += torch.randn(n, generator=numbers) * torch.randn(n, generator=numbers)
    return float(total.var())


def softmax_gradient(d_k: int, scaled: bool, numbers: torch.Generator, keys: int = 64, queries: int = 256) -> float:
    """Mean Frobenius norm of the softmax's Jacobian, diag(p) - p p^T, over queries with so many keys each."""
    q, k = (torch.randn(n, d_k, generator=numbers, dtype=torch.float64) for n in (queries, keys))
    p = (q @ k.T / (math.sqrt(d_k) if scaled else 1.0)).softmax(-1)
    return float((p.diag_embed() - p[:, :, None] * p[:, None]).flatten(1).norm(dim=1).mean())


def measured(seed: int, device: torch.device, d: int = 64) -> dict[str, float]:
    """One run of `section3`: gradients with and without the scale, and slopes of log time on log n."""
    found = {}
    for label, scaled in (("scaled", True), ("unscaled", False)):
        found[f"softmax_gradient_{label}"] = softmax_gradient(512, scaled, generator(seed, "vectors"))
    found["dot_product_variance"] = dot_products(64, generator(seed, "products"), 100_000)
    for name, layer in LAYERS.items():
        seconds = []
        for n in TIMED[name]:
            x = torch.randn(n, d, generator=generator(seed, "x"), device="cpu").to(device)
            tries = []
            for _ in range(8):  # the best: others may want the processor, and the first ones warm up
                begun = _now(device)
                layer(x, WINDOW)
                tries.append(_now(device) - begun)
            seconds.append(min(tries))
        found[f"time_slope_n/{name}"] = slope(TIMED[name], seconds)
    return found


def _now(device: torch.device) -> float:
    """Seconds; on a CPU those of this process alone, for others may want it too."""
    return now(device) if device.type == "cuda" else time.process_time()


# ---- attention maps


@torch.no_grad()
def attention_maps(model: Transformer, source: Tensor | None, target: Tensor) -> dict[str, Tensor]:
    """Weights of every attention while the model reads a batch: module name -> (b, heads, t, s)."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: Attention, args: Any, kwargs: Any) -> None:
            found[name] = module.weights(*args, **kwargs)

        return hook

    handles = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    ]
    model.eval()(source, target)
    for handle in handles:
        handle.remove()
    return found


def save_maps(
    file: Path, maps: dict[str, Tensor], rows: Sequence[str], columns: Sequence[str], shown: Sequence[str]
) -> None:
    """A PNG with one line of pictures for each attention named in `shown`, one picture for each of its heads.

    Args:
        maps: as `attention_maps` has them, of one sentence.
        rows, columns: tokens of the target and of the source.
    """
    from matplotlib.figure import Figure

    heads = min(8, maps[shown[0]].shape[1])
    figure = Figure(figsize=(3.2 * heads, 3.4 * len(shown)), layout="constrained")
    for line, name in enumerate(shown):
        down = columns if name.startswith("encoder") else rows
        across = columns if name.startswith("encoder") or "cross" in name else rows
        for head in range(heads):
            axes = figure.add_subplot(len(shown), heads, line * heads + head + 1)
            axes.imshow(maps[name][0, head].float().cpu().numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axes.set_xticks(range(len(across)), list(across), rotation=90, fontsize=7)
            axes.set_yticks(range(len(down)), list(down), fontsize=7)
            axes.set_title(f"{name.replace('_', ' ')}, head {head + 1}", fontsize=8)
    figure.savefig(file, dpi=90)
