"""The rows of Tables 4 and 6, the arms of Figures 3 and 4, the small nets of the official repository, and what
measures Tables 1 to 3. "code" is state-spaces/s4 at e757cef; "v3" its configs/experiment/lra/old/v3-*."""

from dataclasses import dataclass, replace
from typing import Literal

MNIST, CIFAR = "ylecun/mnist", "uoft-cs/cifar10"
LISTOPS, PATHFINDER, NOISE = "generated/listops", "generated/pathfinder32", "generated/noise"

Init = Literal["legs", "legs-clipped", "lin", "inv", "real", "random", "gaussian", "diagonal"]


@dataclass(frozen=True)
class Config:
    """Defaults: sequential CIFAR-10 (Table 6; configs/experiment/cifar/s4-cifar.yaml)."""

    experiment: Literal["classification", "scaling", "lssl", "transformers"] = "classification"  # or Tables 1, 2, 3
    dataset: str = CIFAR  # pictures as pixels (Table 6), generated/listops, generated/pathfinder32 (Table 4)
    train_samples: int = 0  # of the training part; 0: all but the validation tenth (code; LRA: 96,000 of ListOps)
    validation_samples: int = 0  # 0: a tenth of the training pictures, drawn with seed 42 (code)
    test_samples: int = 0  # 0: all
    grey: bool = False  # LRA Image is CIFAR-10 in grey, Table 6's sequential CIFAR in colour
    shrink: int = 1  # average squares of so many pixels a side (not in the paper: for two CPU cores)
    permuted: bool = False  # pMNIST: pixels in bit-reversed order (code)
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)  # subtracted from values in [0, 1] (code)
    sd: tuple[float, ...] = (0.247, 0.243, 0.261)  # and divided by
    model: Literal["s4", "s4d", "dense", "transformer"] = "s4"  # DPLR (Section 3); 2206.11893; LSSL, Figure 3; LRA's
    depth: int = 6  # layers (code)
    width: int = 512  # channels H (code)
    state: int = 64  # state size N (code)
    length: int = 0  # longest kernel; 0: the data's own (code: ListOps 2048)
    init: Init = "legs"  # of (A, B): HiPPO (Section 2.2; B clipped: code); S4D-Lin, -Inv, -Real; random (Figures 3, 4)
    copies: int = 2  # of (A, B) shared by the channels (code: n_ssm); 0: one a channel
    softplus: bool = True  # Delta = softplus(parameter) (code since v4), else exp(parameter)
    learn_b: bool = True  # train B of S4D; example.py leaves it at 1 (code)
    bidirectional: bool = True  # a second kernel runs from the end (code)
    glu: bool = True  # gate the layer's output (code: final_act), else it is linear (first version)
    norm: Literal["layer", "batch"] = "layer"  # code
    pre_norm: bool = False  # normalise before the layer instead of after the residual (code)
    pool: Literal["mean", "last"] = "mean"  # over time, before the classifier (code)
    dropout: float = 0.1  # code
    tied_dropout: bool = True  # whole channels of a sequence (code)
    early_dropout: bool = True  # also between convolution and GELU (code; example.py: no)
    heads: int = 8  # with model = transformer (LRA)
    mlp: int = 1_024  # its hidden units (LRA)
    batch_size: int = 50  # global (code)
    epochs: int = 200  # with train_steps = 0; the best validation epoch is tested (code)
    train_steps: int = 0  # updates, where a protocol counts those and tests the last iterate (LRA)
    lr: float = 0.01  # AdamW (code)
    weight_decay: float = 0.05  # code; never on A, B, P and Delta
    kernel_lr: float = 1e-3  # of A, B, P (code); 0: they stay as drawn (Figures 3 and 4)
    dt_lr: float = 1e-3  # of Delta (code; ListOps: as lr)
    schedule: Literal["cosine", "epoch-cosine", "plateau", "rsqrt"] = "cosine"  # code; example.py; v1; LRA
    warmup_steps: int = 900  # linear (code: one epoch)
    patience: int = 20  # epochs without a better validation accuracy before lr is divided by 5 (v1), with plateau
    sizes: tuple[int, ...] = ()  # lengths (Tables 1 and 3) or dimensions (Table 2), with the timing experiments
    repeats: int = 10  # timed repetitions of each


PRESETS: dict[str, Config] = {}

# ---- Table 6 (no configuration for MNIST was published), Section 4.3
_MNIST = Config(
    dataset=MNIST, mean=(0.0,), sd=(1.0,), depth=4, width=256, epochs=50, warmup_steps=1_080, weight_decay=0.01
)  # fmt: skip
PRESETS["table6-smnist"] = _MNIST
PRESETS["table6-pmnist"] = replace(_MNIST, permuted=True)
PRESETS["table6-scifar"] = Config()
PRESETS["sec4.3-scifar"] = Config(  # first version (tag v1): configs/experiment/s4-cifar.yaml
    width=1_024, copies=0, softplus=False, bidirectional=False, glu=False, dropout=0.25, weight_decay=0.01,
    schedule="plateau", warmup_steps=0, early_dropout=False,
)  # fmt: skip
PRESETS["readme-pmnist"] = replace(  # README: pipeline=mnist model.n_layers=3 d_model=128 norm=batch prenorm=True
    _MNIST, permuted=True, depth=3, width=128, copies=1, bidirectional=False, norm="batch", pre_norm=True, dropout=0.0,
    epochs=1, lr=1e-3, weight_decay=0.0, schedule="plateau", warmup_steps=0, init="legs-clipped",
)  # fmt: skip

# ---- Figures 3 and 4, Section 4.4: at most 100K parameters, plateau scheduler
_SMALL = Config(
    depth=4, width=124, copies=1, softplus=False, bidirectional=False, glu=False, dropout=0.0, weight_decay=0.01,
    epochs=100, schedule="plateau", warmup_steps=0, patience=10,
)  # fmt: skip
_STARTS: tuple[Init, ...] = ("legs", "gaussian", "diagonal")
for _init in _STARTS:
    for _trained in ("trained", "frozen"):
        PRESETS[f"fig3-{_init}-{_trained}"] = replace(
            _SMALL, model="dense", init=_init, width=108, kernel_lr=1e-3 if _trained == "trained" else 0.0
        )  # fmt: skip
_ARMS: dict[str, dict[str, object]] = {
    "legs": {}, "random-nplr": {"init": "random"}, "random-diagonal": {"model": "s4d", "init": "random"}
}  # fmt: skip
_TINY = {
    "shrink": 2, "depth": 2, "width": 64, "epochs": 4, "train_samples": 10_000, "validation_samples": 2_000,
    "test_samples": 2_000,
}  # fmt: skip
for _name, _arm in _ARMS.items():
    PRESETS[f"fig4-{_name}"] = replace(_SMALL, **_arm)  # type: ignore[arg-type]
    PRESETS[f"fig4-{_name}-frozen"] = replace(_SMALL, kernel_lr=0.0, **_arm)  # type: ignore[arg-type]
    PRESETS[f"fig4-{_name}-dropout"] = replace(_SMALL, dropout=0.1, **_arm)  # type: ignore[arg-type]
    PRESETS[f"laptop-fig4-{_name}"] = replace(PRESETS[f"fig4-{_name}"], **_TINY)  # type: ignore[arg-type]

# ---- Table 4: Long Range Arena, as the code had it when the paper's third version came out (v3) and has it now
_LISTOPS = Config(
    dataset=LISTOPS, train_samples=96_000, validation_samples=2_000, test_samples=2_000, length=2_048, norm="batch",
    dropout=0.0, dt_lr=0.01, epochs=40,
)  # fmt: skip
_IMAGE = Config(grey=True, mean=(122.6 / 255,), sd=(61 / 255,))
_PATHFINDER = Config(
    dataset=PATHFINDER, train_samples=160_000, validation_samples=20_000, test_samples=20_000, mean=(0.5,), sd=(0.5,),
    width=256, copies=0, norm="batch", pre_norm=True, dropout=0.0, batch_size=64, lr=4e-3,
)  # fmt: skip
PRESETS |= {
    "table4-listops": replace(_LISTOPS, depth=8, width=128, copies=0, softplus=False, warmup_steps=1_000),
    "table4-image": replace(_IMAGE, softplus=False),
    "table4-pathfinder": replace(_PATHFINDER, softplus=False, weight_decay=0.03, warmup_steps=2_500, pool="last"),
    "repo-listops": replace(
        _LISTOPS, width=256, state=4, copies=1, batch_size=32, warmup_steps=12_000, init="legs-clipped"
    ),
    "repo-image": replace(_IMAGE, copies=1, norm="batch", warmup_steps=18_000, init="legs-clipped"),
    "repo-pathfinder": replace(_PATHFINDER, warmup_steps=50_000, init="legs-clipped"),
}
_DIAGONAL: dict[str, Init] = {"legs": "legs-clipped", "inv": "inv", "lin": "lin"}
for _task in ("listops", "image", "pathfinder"):  # Table of 2206.11893
    for _name, _init in _DIAGONAL.items():
        PRESETS[f"s4d-{_name}-{_task}"] = replace(PRESETS[f"repo-{_task}"], model="s4d", init=_init)
PRESETS["table4-transformer-listops"] = replace(  # LRA's lra_benchmarks/listops/configs/transformer_base.py
    _LISTOPS, model="transformer", depth=4, batch_size=32, train_steps=5_000, lr=0.05, weight_decay=0.1,
    schedule="rsqrt", warmup_steps=1_000, dropout=0.1,
)  # fmt: skip

# ---- small nets of the repository: example.py, configs/experiment/mega/lra-image
PRESETS["example-s4d"] = Config(
    model="s4d", init="lin", sd=(0.2023, 0.1994, 0.2010), depth=4, width=128, copies=0, softplus=False,
    learn_b=False, bidirectional=False, early_dropout=False, batch_size=64, epochs=100, weight_decay=0.01,
    schedule="epoch-cosine", warmup_steps=0,
)  # fmt: skip
_MEGA = replace(_IMAGE, copies=0, norm="batch", pre_norm=True, tied_dropout=False, init="legs-clipped")
_MEGAS = {
    "small": replace(_MEGA, depth=4, width=128, weight_decay=0.01, epochs=100, warmup_steps=4_500),
    "large": replace(_MEGA, warmup_steps=9_000),
}
for _size, _mega in _MEGAS.items():
    PRESETS[f"lra-image-{_size}-s4"] = _mega
    PRESETS[f"lra-image-{_size}-s4d"] = replace(_mega, model="s4d", init="lin")
    PRESETS[f"lra-image-{_size}-s4d-real"] = replace(_mega, model="s4d", init="real")

# ---- Tables 1 to 3; the sizes of the first fit two CPU cores, a GPU wants larger batches
_TIMING = Config(dataset=NOISE, bidirectional=False, copies=1, dropout=0.0, depth=1)
PRESETS["table1-scaling"] = replace(_TIMING, experiment="scaling", width=128, batch_size=4, sizes=(1_024, 2_048, 4_096))
PRESETS["table2-lssl"] = replace(_TIMING, experiment="lssl", batch_size=1, length=1_024, sizes=(128, 256, 512))
PRESETS["table3-transformers"] = replace(
    _TIMING, experiment="transformers", depth=4, width=600, heads=4, batch_size=32, sizes=(1_024, 4_096)
)

# ---- Ours: the same in minutes on two CPU cores
PRESETS["laptop-scaling"] = replace(PRESETS["table1-scaling"], width=64, sizes=(1_024, 2_048), repeats=5)
PRESETS["laptop-lssl"] = replace(PRESETS["table2-lssl"], length=512, sizes=(16, 32, 64), repeats=3)
PRESETS["laptop-transformers"] = replace(PRESETS["table3-transformers"], batch_size=1, repeats=3)
PRESETS["laptop"] = replace(
    PRESETS["table6-smnist"], depth=2, width=64, copies=1, epochs=2, train_samples=12_800, test_samples=2_000,
    validation_samples=1_000, batch_size=64, warmup_steps=100,
)  # fmt: skip
PRESETS["smoke"] = replace(
    PRESETS["laptop"], dataset="synthetic/8x8x1", depth=2, width=16, state=8, norm="batch", train_samples=96,
    validation_samples=30, test_samples=50, batch_size=16, warmup_steps=3, dropout=0.0,
)  # fmt: skip
