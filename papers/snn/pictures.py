"""What a trained net does with some test samples: spike rasters, membrane traces, readout."""

from pathlib import Path

import torch
from torch import Tensor

from papers.snn.model import Network, Times, membrane

TRACES = 6  # membranes drawn of a layer
SHOWN = 200  # neurons drawn in a raster


@torch.no_grad()
def save_pictures(
    path: Path, net: Network, tensors: dict[str, Tensor], x: Tensor | Times, y: Tensor, beta: list[float]
) -> None:
    """A column per sample: input (if it spikes), layers, readout from the top."""
    from matplotlib.figure import Figure

    net.eval()
    trace = net(tensors, x, beta, keep=True)
    entered = x.spikes(net.steps, torch.float32)[0].cpu() if isinstance(x, Times) else None
    rows = (entered is not None) + 2 * len(trace.layers) + 1
    figure = Figure(figsize=(3 * len(y), 1.6 * rows), layout="constrained")
    axes = figure.subplots(rows, len(y), squeeze=False, sharex=True)
    for sample, label in enumerate(y.tolist()):
        column = iter(axes[:, sample])

        def raster(spikes: Tensor, name: str) -> None:
            axis = next(column)  # noqa: B023 -- used within this turn
            at, neuron = torch.nonzero(spikes[:, :SHOWN]).unbind(1)
            axis.scatter(at, neuron, s=2, c="black", linewidths=0)
            axis.set_ylim(-1, min(spikes.shape[1], SHOWN))
            axis.set_ylabel(name)

        if entered is not None:
            raster(entered[sample], "input")
        for number, (spikes, potential, neuron) in enumerate(trace.layers, 1):
            assert spikes is not None
            S = spikes.flatten(3)[:, sample : sample + 1].cpu()
            raster(S[0, 0], f"layer {number}")
            axis = next(column)
            U = membrane(potential.flatten(3)[:, sample : sample + 1].cpu(), S, neuron)[0, 0]
            axis.plot(U[:, S[0, 0].sum(0).argsort(descending=True, stable=True)[:TRACES]], linewidth=0.8)
            axis.axhline(neuron.threshold, color="grey", linewidth=0.5)
            axis.set_ylabel("membrane")
        axis = next(column)
        out = trace.potential[0, sample].cpu()
        for unit in range(out.shape[1]):
            right = unit == label
            axis.plot(
                out[:, unit], color="tab:red" if right else "0.7", linewidth=1.5 if right else 0.8, zorder=1 + right
            )
        axis.set_ylabel("readout")
        axis.set_xlabel("step")
        axes[0, sample].set_title(f"class {label}")
    figure.savefig(path, dpi=70)
