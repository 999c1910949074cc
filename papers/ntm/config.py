"""What can differ between two runs: one field per fact of the protocol (section 4, Tables 1 to 3)."""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    dataset: str = "generated/copy"  # the task: copy, repeat-copy, associative, ngrams, sort
    # the net
    controller: Literal["lstm", "feedforward", "none"] = "lstm"  # "none": the optimal estimator of dynamic n-grams
    hidden: int = 100  # units of a controller layer ("Controller Size", Tables 1 and 2; "Network Size", Table 3)
    layers: int = 1  # of the controller (Tables 2 and 3)
    heads: int = 1  # so many read heads and as many write heads ("#Heads", 4.5); 0: no memory, the LSTM of Table 3
    rows: int = 128  # N, memory locations (Tables 1 and 2)
    columns: int = 20  # M, size of a location (Tables 1 and 2)
    shift_reach: int = 1  # shifts -1, 0, 1 (3.3.2 names them as an example)
    key_add: Literal["linear", "tanh"] = "tanh"  # unsaid: squashing of keys and add vectors (Collier & Beel: tanh)
    clip_emitted: float = 0.0  # where > 0, controller outputs are clipped to +- this (Collier & Beel: 20)
    memory_init: Literal["uniform", "constant", "random", "learned"] = "uniform"  # initial contents, all trained
    forget_bias: float = 0.0  # unsaid: initial bias of the forget gates (Collier & Beel: 1)
    # learning
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"  # RMSProp in the form of Graves 2013 (4.6)
    lr: float = 1e-4  # Tables 1 to 3
    decay: float = 0.95  # of the averages of gradient and square (Graves 2013); Adam: beta2
    momentum: float = 0.9  # 4.6; Adam: beta1
    eps: float = 1e-4  # inside the root (Graves 2013); Adam: outside
    clip_value: float = 10.0  # gradient components are clipped to +- this (4.6); 0: not
    clip_norm: float = 0.0  # largest norm of the gradient (Collier & Beel: 50); 0: not clipped
    batch_size: int = 1  # sequences an update; the curves count sequences
    train_sequences: int = 1_000_000  # where the axis of the figure ends
    # what is reported
    report_sequences: int = 10_000  # a point of the learning curve is the mean over so many training sequences
    solved: Literal["bits", "errors"] = "bits"  # solved: a point with less than this cost in bits, or wrong bits, ...
    solved_below: float = 0.1  # ... per sequence
    cost_at: tuple[int, ...] = ()  # points of the curve that are metrics: those that hold this many sequences
    generalise: tuple[str, ...] = ()  # sizes of longer sequences on which the trained net is evaluated
    eval_sequences: int = 100  # unsaid: how many of each size
    validation_sequences: int = 0  # n-grams: a fixed set of this size, taken at each point of the curve (4.4)


# ---- the paper, task by task. Learning rates: Tables 1 to 3. Budgets: the end of the curves in the figures, or where
# they are flat (repeat copy, n-grams).

_copy = Config(generalise=("10", "20", "30", "50", "120"))  # Figures 4 and 5
_repeat = replace(
    _copy, dataset="generated/repeat-copy", train_sequences=250_000, cost_at=(25_000, 55_000, 85_000),
    generalise=("10x10", "20x10", "10x20"),
)  # fmt: skip
_associative = replace(_copy, dataset="generated/associative", generalise=("6", "10", "15", "20"))  # Figure 11
_ngrams = replace(
    _copy, dataset="generated/ngrams", lr=3e-5, train_sequences=200_000, generalise=(), validation_sequences=1000
)
_sort = replace(_copy, dataset="generated/sort", lr=3e-5, cost_at=(195_000,), generalise=())


def _lstm(task: Config, hidden: int, lr: float, **changes: Any) -> Config:
    """Table 3: three layers, no memory."""
    return replace(task, hidden=hidden, layers=3, heads=0, lr=lr, **changes)


PAPER: dict[str, Config] = {
    "fig3-copy-ntm-lstm": _copy,
    "fig3-copy-ntm-ff": replace(_copy, controller="feedforward", cost_at=(35_000, 45_000)),
    "fig3-copy-lstm": _lstm(_copy, 256, 3e-5, cost_at=(75_000, 195_000, 295_000)),
    "fig7-repeat-ntm-lstm": _repeat,
    "fig7-repeat-ntm-ff": replace(_repeat, controller="feedforward"),
    "fig7-repeat-lstm": _lstm(_repeat, 512, 3e-5),
    "fig10-associative-ntm-lstm": replace(_associative, cost_at=(75_000, 95_000)),
    "fig10-associative-ntm-ff": replace(
        _associative, controller="feedforward", hidden=256, heads=4, cost_at=(35_000, 45_000)
    ),
    "fig10-associative-lstm": _lstm(_associative, 256, 1e-4, cost_at=(95_000, 295_000)),
    "fig13-ngrams-optimal": replace(_ngrams, controller="none"),
    "fig13-ngrams-ntm-lstm": _ngrams,
    "fig13-ngrams-ntm-ff": replace(_ngrams, controller="feedforward"),
    "fig13-ngrams-lstm": _lstm(_ngrams, 128, 1e-4),
    "fig18-sort-ntm-lstm": replace(_sort, layers=2, heads=5),
    "fig18-sort-ntm-ff": replace(_sort, controller="feedforward", hidden=512, heads=8),
    "fig18-sort-lstm": _lstm(_sort, 128, 3e-5),
    "s45-sort-ntm-ff-1-head": replace(_sort, controller="feedforward", hidden=512),
}

# ---- Collier & Beel 2018 (their run_tasks.py and ntm.py; 31,250 updates of 32 sequences, a look every 200)

_cb = Config(
    clip_emitted=20.0, forget_bias=1.0, optimizer="adam", lr=1e-3, decay=0.999, eps=1e-8, clip_value=0.0,
    clip_norm=50.0, batch_size=32, report_sequences=6_400, train_sequences=998_400, solved="errors",
)  # fmt: skip
_CB_TASKS = {"copy": "copy", "repeat": "repeat-copy", "associative": "associative"}
COLLIER_BEEL: dict[str, Config] = {
    f"cb-{name}-{scheme}": replace(_cb, dataset=f"generated/{task}", memory_init=scheme)
    for name, task in _CB_TASKS.items()
    for scheme in ("constant", "random", "learned")
}

# ---- the same, cut down to three seeds in ten minutes of one core; the nets of a figure get equally many sequences

_BUDGET = {"copy": 40_000, "repeat": 60_000, "associative": 100_000, "ngrams": 16_000, "sort": 40_000}
_SMALLER: dict[str, Any] = {
    "repeat-lstm": {"hidden": 128},
    "associative-lstm": {"hidden": 128},
}  # as Table 3 has it for other tasks
_LAPTOP: dict[str, Config] = {
    f"laptop-{name}": replace(
        config,
        train_sequences=_BUDGET[name.split("-")[0]],
        report_sequences=2_000 if config.validation_sequences else 1_000,
        **_SMALLER.get(name, {}),
    )
    for name, config in ((preset.split("-", 1)[1], config) for preset, config in PAPER.items())
    if config.controller != "none"
}

PRESETS: dict[str, Config] = {
    "laptop": _LAPTOP.pop("laptop-copy-ntm-lstm"),
    **_LAPTOP,
    **{f"laptop-{name}": replace(config, train_sequences=160_000) for name, config in COLLIER_BEEL.items()},
    "smoke": replace(
        _copy, hidden=12, rows=24, columns=6, lr=1e-3, train_sequences=300, report_sequences=50, batch_size=5,
        cost_at=(300,), generalise=("30",), eval_sequences=4,
    ),
    **PAPER,
    **COLLIER_BEEL,
    "lt-copy": replace(_copy, train_sequences=50_000, report_sequences=1_000, solved="errors"),  # its task, its budget
}  # fmt: skip
