"""Table 3's rows, the trends of Section 4 and Appendix 8.1, Table 1's features, and our own cut-down protocols."""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """Defaults: Table 3's DCGAN by the released script, mnist/train_cond_dcgan.py of Newmu/dcgan_code ("code")."""

    dataset: str = "ylecun/mnist"  # data set id; synthetic/28x28x1 is drawn by the program
    model: Literal["dcgan", "gan", "conv", "none"] = "dcgan"  # conditional; baseline; Table 1's; none: the data itself
    train_images: int = 50_000  # after one shuffle by the seed (code: 50,000 of 60,000)
    validation_images: int = 10_000  # the next ones (code: 10,000)
    latents: int = 100  # size of z, uniform in [-1, 1] (code: nz)
    width: int = 64  # maps of D's first layer (code: ndf = ngf = 64; Table 1: 128)
    full: int = 1024  # units of fully connected layers (code: ngfc = ndfc)
    batch_norm: bool = True  # normalise all layers but G's last and D's first (Section 3)
    bn_affine: bool = False  # with scale and shift (Appendix 8.1: without)
    init_sd: float = 0.02  # of all weights (Section 4)
    batch_size: int = 128  # Section 4; global; an epoch's last batch is smaller (code: iter_data)
    constant_epochs: int = 100  # at the full learning rate (code: niter)
    decay_epochs: int = 100  # linearly towards zero (code: niter_decay)
    lr: float = 2e-4  # Adam (Section 4)
    beta1: float = 0.5  # Section 4
    beta2: float = 0.999  # code: updates.Adam
    l2: float = 2.5e-5  # times the weight is added to every gradient (code: l2)
    eval_epochs: int = 5  # between points of the curve, each with a sample grid (code: 5)
    eval_samples: int = 10_000  # whose 1-NN error on validation digits the curve shows (code: 1k, 10k, 100k)
    nn_samples: tuple[int, ...] = (50_000, 10_000_000)  # references of the test digits' 1-NN error (Table 3)
    judge_samples: int = 10_000  # seen through the project's own classifier (not in the paper); 0: none
    path_pairs: int = 2_000  # of which the length of paths between latents is taken (not in the paper); 0: none
    svm_c: tuple[float, ...] = ()  # an L2-SVM on D's features, C chosen among these on validation pictures; (): none
    svm_dataset: str = ""  # whose pictures it classifies; "": dataset (Table 1: CIFAR-10)
    svm_per_class: int = 400  # labelled pictures per class of the small protocol (Table 1)
    svm_draws: int = 10  # of those


PRESETS: dict[str, Config] = {}

# ---- Table 3 and what Appendix 8.1 and Section 4 say beside it
_CHANGES: dict[str, dict[str, Any]] = {
    "dcgan": {},
    "gan": {"model": "gan"},
    "dcgan-affine": {"bn_affine": True},
    "gan-affine": {"model": "gan", "bn_affine": True},
    "no-batchnorm": {"batch_norm": False},
    "beta1-0.9": {"beta1": 0.9},
    "lr-1e-3": {"lr": 1e-3},
}
_WHERE = {"dcgan": "table3", "gan": "table3", "dcgan-affine": "app8.1", "gan-affine": "app8.1"}
for _name, _change in _CHANGES.items():
    PRESETS[f"{_WHERE.get(_name, 'sec4')}-{_name}"] = Config(**_change)
PRESETS["table3-real-data"] = Config(model="none", nn_samples=(), judge_samples=0)

# ---- Table 1: features of a discriminator trained on ImageNet-1k at 32x32 (sizes of the released weights)
PRESETS["table1-imagenet32"] = Config(
    dataset="benjamin-paine/imagenet-1k-32x32",
    model="conv",
    train_images=1_281_167,
    validation_images=0,
    latents=256,
    width=128,
    bn_affine=True,
    constant_epochs=30,  # the released file's number
    decay_epochs=0,
    l2=1e-5,  # code: faces/train_uncond_dcgan.py
    eval_epochs=1,
    nn_samples=(),
    judge_samples=0,
    svm_dataset="uoft-cs/cifar10",
    svm_c=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),  # code: svhn/svhn_semisup_analysis.py
)

# ---- Ours: the same protocols, shorter
_TEN: dict[str, Any] = {"constant_epochs": 5, "decay_epochs": 5, "eval_epochs": 1, "nn_samples": (50_000,)}
_TWO = _TEN | {"constant_epochs": 1, "decay_epochs": 1}
PRESETS["laptop"] = Config(**_TEN)
PRESETS["laptop-gan"] = Config(model="gan", **_TEN)
for _name, _change in _CHANGES.items():
    PRESETS[f"two-epochs-{_name}"] = Config(**_TWO, **_change)
PRESETS["table1-cifar10"] = replace(
    PRESETS["table1-imagenet32"],
    dataset="uoft-cs/cifar10",
    svm_dataset="",
    train_images=50_000,
    eval_epochs=5,
    judge_samples=10_000,
)
PRESETS["laptop-cifar10"] = replace(
    PRESETS["table1-cifar10"], width=32, constant_epochs=5, eval_epochs=1, svm_c=(1e-3, 1e-2), svm_draws=3
)
PRESETS["smoke"] = Config(
    dataset="synthetic/28x28x1",
    train_images=440,
    validation_images=64,
    latents=8,
    width=4,
    full=32,
    batch_size=64,
    constant_epochs=1,
    decay_epochs=1,
    eval_epochs=1,
    eval_samples=100,
    nn_samples=(100, 200),
    judge_samples=200,
    path_pairs=0,  # a difference quotient in float32: good to some thousandths only
)
