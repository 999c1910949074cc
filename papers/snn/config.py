"""Every protocol as data: the grids of Zenke and Vogels, and the rows that official code and tutorials print."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

Encoding = Literal["times", "latency", "constant", "bernoulli", "encoders"]
Surrogate = Literal["superspike", "asymptotic", "sigmoid", "esser", "rectangle", "arctan", "spike", "zero"]


def decay(tau: float, dt: float) -> float:
    """Of an exponential with time constant tau in a step dt, both in ms."""
    return math.exp(-dt / tau)


@dataclass(frozen=True)
class Config:
    """Defaults: Zenke and Vogels' network with one hidden layer (Z&V). Codes: stork at 258a2d6, spytorch at d363dbf."""

    dataset: str = "generated/randman"  # data set id (Z&V Section 4: 10 classes, 20 inputs, 1,000 points each)
    encoding: Encoding = "times"  # of the input: spike times as they are, pictures or recordings made so (data.py)
    steps: int = 100  # of dt (Z&V Section 4)
    dt: float = 1.0  # ms (Z&V Section 4)
    net: str = "100-10"  # layers from below, the readout last; 32C3: maps and kernel; P2, M2: mean, max pooling
    recurrent: bool = False  # hidden layers see their own spikes
    recurrent_gradient: bool = True  # they are differentiated on that way (Z&V Figure 5e: Prop; off: Ctl)
    decay_mem: float = decay(10, 1)  # of the hidden membrane in a step (Z&V Section 4: tau_mem 10 ms)
    decay_syn: float = decay(5, 1)  # of the synaptic current (Z&V Section 4: tau_syn 5 ms); 0: no synapse
    decay_readout: float = decay(20, 1)  # of the readout's membrane (Z&V Section 4: 20 ms)
    leak_gain: bool = True  # current enters times 1 - decay (Z&V Section 4); off: as it is
    lags: tuple[int, int, int] = (2, 2, 2)  # steps from a spike to hidden, recurrent, readout membranes (Z&V Section 4)
    start: tuple[float, float] = (0.0, 0.0)  # membrane of hidden layers and readout one step before the first
    threshold: float = 1.0  # a spike above it (Z&V Section 4)
    reset: Literal["whole", "before", "subtract"] = "whole"  # what a spike does to the membrane, see model.py
    reset_gradient: bool = False  # the reset is differentiated (Z&V Figure 5: DR; off: Ctl)
    surrogate: Surrogate = "superspike"  # derivative of a spike (Z&V Figure 3a, 5a; model.py)
    beta: tuple[float, ...] = (10.0,)  # its steepness (Z&V Section 4); several: cells of a grid
    loss: Literal["max", "sum", "rate"] = "max"  # cross-entropy of the maximum over time; see model.losses
    bias: bool = False  # layers have biases
    batch_norm: bool = False  # after convolutions
    init: Literal["uniform", "normal", "fluctuation"] = "uniform"  # of the weights (Z&V Section 4: +-1/sqrt(fan-in))
    init_scale: tuple[float, float] = (1.0, 1.0)  # times 1/sqrt(fan-in), of feedforward and recurrent weights
    lower: tuple[float, float] = (100.0, 1e-3)  # weight and spikes: every neuron should have as many (Z&V Section 4)
    upper: tuple[float, float] = (0.0, 0.0)  # weight and spikes: a layer's mean should have no more (Z&V Figure 6)
    batch_penalty: tuple[float, float] = (0.0, 0.0)  # on all spikes; on a neuron's squared count (spytorch Tutorial 3)
    optimizer: Literal["adam", "adamax", "smorms3", "sgd"] = "adam"  # Z&V Section 4: Adam
    beta2: float = 0.999  # of Adam and Adamax; the first is 0.9; sgd: momentum 0.9
    lr: tuple[float, ...] = (0.05,)  # step size (the best of Z&V's grid); several: cells of a grid
    schedule: Literal["constant", "tenth-40", "cosine"] = "constant"  # a tenth after 41, 81 epochs, or half a cosine
    batch_size: int = 250  # Z&V Section 4; global
    drop_last: bool = True  # an epoch's last, smaller batch is left out; off: it is used
    epochs: int = 50  # Z&V: 50 to 100; 200 in Figure 5
    evaluated: Literal["all", "whole batches", "mean of batches"] = "all"  # how the accuracy is taken
    best_cells: int = 1  # cells, best by validation, whose mean test accuracy is reported (Z&V Figure 5c: 10)


PRESETS: dict[str, Config] = {}

# ---- Zenke and Vogels
LR_GRID = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
BETA_GRID = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0, 1000.0)
_GRID: dict[str, Any] = {"lr": LR_GRID, "beta": BETA_GRID, "best_cells": 10}
_CUT: dict[str, Any] = {"lr": (0.01, 0.05), "beta": (1.0, 5.0, 10.0, 100.0), "best_cells": 2, "epochs": 20}
_SHAPES: tuple[Literal["superspike", "sigmoid", "esser"], ...] = ("superspike", "sigmoid", "esser")
for _shape in _SHAPES:
    PRESETS[f"zv-fig3-{_shape}"] = Config(surrogate=_shape, **_GRID)
# Figure 5: s is 1 at the threshold, a asymptotic; gradients flow through reset (DR), recurrence (Prop), or neither
_FIG5: dict[str, dict[str, Any]] = {
    "sctl": {},
    "sdr": {"reset_gradient": True},
    "actl": {"surrogate": "asymptotic"},
    "adr": {"surrogate": "asymptotic", "reset_gradient": True},
    "srec": {"recurrent": True, "recurrent_gradient": False},
    "sprop": {"recurrent": True},
    "arec": {"recurrent": True, "recurrent_gradient": False, "surrogate": "asymptotic"},
    "aprop": {"recurrent": True, "surrogate": "asymptotic"},
}
for _side, _changes in _FIG5.items():
    PRESETS[f"zv-fig5-{_side}"] = Config(**_GRID | {"epochs": 200} | _changes)
for _layers in (2, 3):
    PRESETS[f"zv-fig5-adr-{_layers}layers"] = replace(PRESETS["zv-fig5-adr"], net="100-" * _layers + "10")
for _name in list(PRESETS):
    PRESETS[_name.replace("zv-", "zv-cut-")] = replace(PRESETS[_name], **_CUT)
PRESETS["zv-one"] = Config()
PRESETS["zv-true-gradient"] = Config(surrogate="zero")
PRESETS["zv-sparse"] = Config(upper=(1.0, 0.5))

# ---- stork, notebook 01
PRESETS["stork-nb01"] = Config(
    dataset="generated/randman-stork",
    dt=2.0,
    net="128-10",
    decay_mem=decay(20, 2),
    decay_syn=decay(10, 2),
    decay_readout=decay(200, 2),
    lags=(3, 3, 2),  # a connection delivers at the next step (models.py, run)
    start=(0.0, -1e-2),
    beta=(20.0,),
    init="fluctuation",
    upper=(0.1, 4.0),
    optimizer="smorms3",
    lr=(5e-3,),
    epochs=200,
)

# ---- spytorch: Tutorials 2 and 3 (Fashion-MNIST by spike latency), 5 (Braille)
_FASHION = "zalando-datasets/fashion_mnist"
PRESETS["spytorch-t2"] = Config(
    dataset=_FASHION,
    encoding="latency",
    decay_readout=decay(10, 1),
    leak_gain=False,
    lags=(2, 2, 1),
    beta=(100.0,),
    init="normal",
    init_scale=(7 * (1 - decay(10, 1)), 0.0),
    lower=(0.0, 0.0),
    lr=(2e-4,),
    batch_size=256,
    epochs=30,
    evaluated="whole batches",
)
PRESETS["spytorch-t3"] = replace(
    PRESETS["spytorch-t2"], init_scale=(0.2, 0.0), optimizer="adamax", batch_penalty=(1e-5, 1e-5)
)
PRESETS["spytorch-t5"] = Config(
    dataset="local/braille-taxels",
    encoding="encoders",
    steps=152,
    net="200-28",
    recurrent=True,
    decay_mem=decay(20, 1),
    decay_syn=decay(10, 1),
    decay_readout=decay(20, 1),
    lags=(2, 3, 1),
    start=(-1e-3 / decay(20, 1), 0.0),
    beta=(20.0,),
    init="normal",
    init_scale=(3.0, 0.03),
    lower=(0.0, 0.0),
    optimizer="adamax",
    beta2=0.995,
    lr=(1e-2,),
    batch_size=100,
    drop_last=False,
    epochs=100,
    evaluated="mean of batches",
)

# ---- neurons without synapses: snnTorch Tutorial 5, SpikingJelly's tutorials, STBP
PRESETS["snntorch-t5"] = Config(
    dataset="ylecun/mnist",
    encoding="constant",
    steps=25,
    net="1000-10",
    decay_mem=0.95,
    decay_syn=0.0,
    decay_readout=0.95,
    leak_gain=False,
    lags=(0, 1, 0),
    reset="subtract",
    surrogate="spike",
    loss="sum",
    bias=True,
    lower=(0.0, 0.0),
    lr=(5e-4,),
    batch_size=128,
    epochs=1,
)
_AT_ONE = 1 - 2**-24  # these spike at the threshold too: the float32 below 1
PRESETS["spikingjelly-mnist-fc"] = replace(
    PRESETS["snntorch-t5"],
    encoding="bernoulli",
    steps=100,
    net="10",
    decay_readout=0.5,  # tau = 2, input divided by it too
    leak_gain=True,
    threshold=_AT_ONE,
    reset="before",
    reset_gradient=True,  # detach_reset is off unless asked for
    surrogate="arctan",
    beta=(math.pi,),
    loss="rate",
    bias=False,
    lr=(1e-3,),
    batch_size=64,
    epochs=100,
)
PRESETS["spikingjelly-fmnist"] = replace(
    PRESETS["spikingjelly-mnist-fc"],
    dataset=_FASHION,
    encoding="constant",
    steps=4,
    net="128C3-M2-128C3-M2-2048-10",
    decay_mem=1.0,
    decay_readout=1.0,
    leak_gain=False,
    batch_norm=True,
    optimizer="sgd",
    lr=(0.1,),
    schedule="cosine",
    batch_size=128,
    epochs=64,
)
PRESETS["stbp-repo-mnist-cnn"] = replace(
    PRESETS["spikingjelly-mnist-fc"],
    steps=20,
    net="32C3-P2-32C3-P2-128-10",
    decay_mem=0.2,
    decay_readout=0.2,
    leak_gain=False,
    threshold=0.5,
    surrogate="rectangle",
    beta=(2.0,),  # half-width 0.5
    bias=True,
    schedule="tenth-40",
    batch_size=100,
)
PRESETS["stbp-mnist-cnn"] = replace(PRESETS["stbp-repo-mnist-cnn"], net="15C5-P2-40C5-P2-300-10")
PRESETS["stbp-mnist-fc"] = replace(PRESETS["stbp-repo-mnist-cnn"], net="800-10")

# ---- ours
PRESETS["cut-spikingjelly-mnist-fc"] = replace(PRESETS["spikingjelly-mnist-fc"], epochs=10)
PRESETS["cut-stbp-mnist-fc"] = replace(PRESETS["stbp-mnist-fc"], epochs=3)
PRESETS["laptop"] = replace(PRESETS["stork-nb01"], epochs=40)
PRESETS["smoke"] = Config(
    dataset="synthetic/randman",
    steps=30,
    net="12-8-3",
    recurrent=True,
    beta=(5.0, 20.0),
    init="fluctuation",
    init_scale=(1.0, 0.3),
    upper=(0.1, 4.0),
    batch_penalty=(1e-4, 1e-4),
    lr=(0.01, 0.02),
    batch_size=48,
    epochs=3,
    best_cells=2,
)
