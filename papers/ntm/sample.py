"""Pictures of a net at work, as in Figures 4 to 6: what goes in and out, what is written and read, and where."""

from collections.abc import Callable
from pathlib import Path

import torch

from papers.ntm import data
from papers.ntm.data import Size, Task
from papers.ntm.model import NTM


@torch.no_grad()
def panels(model: NTM, task: Task, seed: int, size: Size) -> dict[str, torch.Tensor]:
    """name -> (channels, steps) of the first net on one sequence; vectors and weightings of all heads stacked."""
    batch = data.sequences(task, (seed, "picture"), range(1), size)
    x, y = torch.from_numpy(batch.x[0]), torch.from_numpy(batch.y[0])
    one, trace = NTM(model.net), {}  # type: ignore[var-annotated]
    one.theta.copy_(model.theta[:1])
    z = one(x[None, None], trace)[0, 0]
    judged = (torch.arange(len(x)) >= int(batch.first[0]))[:, None]
    found = {"inputs": x, "targets": y, "outputs": z.sigmoid() * judged}
    if trace:
        w, a, r = (torch.stack(trace[name])[:, 0, 0] for name in ("w", "a", "r"))
        R = model.net.heads
        found |= {"adds": a.flatten(1), "reads": r.flatten(1)}
        found |= {"write weightings": w[:, R:].flatten(1), "read weightings": w[:, :R].flatten(1)}
    return {name: value.T for name, value in found.items()}


def save_pictures(path: Callable[[str, str], Path], model: NTM, task: Task, seed: int, sizes: list[Size]) -> None:
    """One PNG a size, of the first net; the largest of training where no sizes are given.

    Args:
        path: (name, what there is to see) -> where to write, as `Run.picture`.
    """
    from matplotlib.figure import Figure

    for size in sizes or [tuple(high for _, high in task.sizes)]:
        shown = panels(model, task, seed, size)
        heights = [max(0.8, min(2.6, len(values) / 14)) for values in shown.values()]
        width = min(14.0, 3 + next(iter(shown.values())).shape[1] / 10)
        figure = Figure(figsize=(width, sum(heights) + 0.5 * len(heights)), layout="constrained")
        axes = figure.subplots(len(shown), 1, sharex=True, height_ratios=heights)
        for ax, (name, values) in zip(axes, shown.items(), strict=True):
            low, high = (-1, 1) if name in ("adds", "reads") else (min(0.0, float(values.min())), 1)
            ax.imshow(values.numpy(), aspect="auto", interpolation="nearest", cmap="gray", vmin=low, vmax=high)
            ax.set_title(name, fontsize=8, loc="left")
            ax.set_yticks([])
        axes[-1].set_xlabel("time step")
        name = f"length-{'x'.join(map(str, size))}"
        alt = "What goes in and out of a net, what it adds to its memory and reads, and where, step by step"
        figure.savefig(path(name, alt), dpi=70)
