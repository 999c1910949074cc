"""B.9's protocols on CIFAR-10 (Figures B.7 and B.8), the authors' README, lightly's benchmark, digits, our trends."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """Defaults: B.9's best model. "Code" is google-research/simclr at 383d414, its first version's setting."""

    experiment: Literal["resnet", "digits"] = "resnet"  # the paper's; Ropedia Academy's small net (digits.py)
    dataset: str = "uoft-cs/cifar10"  # 32x32 pictures, whole in memory
    objective: Literal["contrastive", "supervised"] = "contrastive"  # B.9 has a supervised baseline
    dialect: Literal["google", "lightly"] = "google"  # whose network, views and initial weights (README)
    depth: int = 50  # layers of the ResNet (B.9; README of the code: 18; 10 is ours)
    width: float = 1.0  # multiplier of its channels (Section 6)
    head: Literal["nonlinear", "linear", "none"] = "nonlinear"  # g (Section 4.2)
    head_layers: int = 2  # of a nonlinear head (Section 2.1; the code's later default is 3)
    projection: int = 128  # dimension of z (Section 2.3)
    train_images: int = 50_000  # the first ones; both phases see them
    test_images: int = 10_000  # all
    batch_size: int = 1_024  # N, pictures; global (B.9)
    epochs: int = 1_000  # of pre-training; epochs * images // batch + 1 updates (code: get_train_steps)
    pretrain_steps: int = 0  # updates on batches drawn with replacement (digits); 0: by epochs
    optimizer: Literal["lars", "sgd", "adam"] = "lars"  # Section 2.3, momentum 0.9 (code); Adam with digits alone
    lr: float = 1.0  # one of 0.5, 1.0, 1.5 (B.9)
    lr_scaling: Literal["linear", "sqrt"] = "linear"  # lr * N / 256, or lr * sqrt(N) (B.1)
    weight_decay: float = 1e-6  # Section 2.3; not of gains and biases with LARS (code)
    warmup_epochs: float = 10  # linear (Section 2.3), then half a cosine
    temperature: float = 0.5  # tau, one of 0.1, 0.5, 1.0 (B.9)
    normalised: bool = True  # similarity of unit vectors; False: inner product (Table 5)
    crop: bool = True  # random resized crop and flip (Appendix A)
    strength: float = 0.5  # of the colour jitter (B.9)
    jitter: float = 0.8  # its probability (Appendix A)
    grey: float = 0.2  # probability of dropping colour (Appendix A)
    blur: float = 0.0  # probability of a blur (B.9: none; ImageNet: 0.5, Appendix A)
    brightness: Literal["add", "multiply"] = "add"  # Appendix A by tf.image; "multiply" is the code's second version
    linear_epochs: int = 100  # of the linear classifier (README of the code, CIFAR-10; B.6: 90)
    linear_batch_size: int = 512  # README of the code, CIFAR-10
    linear_lr: float = 0.1  # times batch / 256 (B.6), Nesterov momentum 0.9, no decay, half a cosine
    linear_crops: bool = True  # it sees crops and flips (B.6); False: whole pictures, encoded once
    linear_labels: int = 0  # labelled pictures of a draw, all in each update (digits); 0: all pictures
    linear_draws: int = 1  # of labels, whose accuracies are averaged (digits)
    neighbours: int = 200  # k of the nearest-neighbour classifier (lightly)
    neighbour_temperature: float = 0.1  # of its votes (lightly)

    @property
    def peak_lr(self) -> float:
        n = self.batch_size
        return self.lr * (n / 256 if self.lr_scaling == "linear" else math.sqrt(n))

    @property
    def train_steps(self) -> int:
        if self.experiment == "digits":
            return self.pretrain_steps
        per_epoch = self.train_images // self.batch_size
        if self.dialect == "lightly":
            return self.epochs * per_epoch
        return self.epochs * self.train_images // self.batch_size + 1

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup_epochs * self.train_images // self.batch_size)

    @property
    def linear_steps(self) -> int:
        if self.objective == "supervised":
            return 0
        if self.experiment == "digits":
            return self.linear_epochs
        return self.linear_epochs * self.train_images // self.linear_batch_size + 1


PRESETS: dict[str, Config] = {}

# ---- B.9: the best model, the supervised baseline, Figures B.7 and B.8
_B9 = Config()
PRESETS["b9-supervised"] = replace(
    _B9, objective="supervised", epochs=200, optimizer="sgd", lr=0.1, weight_decay=5e-4, jitter=0.0, grey=0.0
)
for _n in (256, 512, 1024, 2048, 4096):
    for _epochs in (100, 200, 400, 1000):
        PRESETS[f"b9-n{_n}-e{_epochs}"] = replace(_B9, batch_size=_n, epochs=_epochs)
    for _tau in (0.1, 1.0):
        PRESETS[f"b9-n{_n}-e400-tau{_tau:g}"] = replace(_B9, batch_size=_n, epochs=400, temperature=_tau)
PRESETS["b9"] = PRESETS.pop("b9-n1024-e1000")

# ---- the authors' README, and the benchmark of lightly at e8d317f
PRESETS["readme-r18"] = replace(_B9, depth=18, batch_size=512, weight_decay=1e-4)
PRESETS["readme-r18-random"] = replace(PRESETS["readme-r18"], lr=0.0, epochs=1)  # its statistics move, no weight does
_LIGHTLY = replace(
    _B9, dialect="lightly", depth=18, batch_size=512, epochs=200, optimizer="sgd", lr=0.12, weight_decay=5e-4,
    warmup_epochs=0, brightness="multiply",
)  # fmt: skip
PRESETS["lightly-r18-512-200"] = _LIGHTLY
PRESETS["lightly-r18-128-200"] = replace(_LIGHTLY, batch_size=128)
PRESETS["lightly-r18-512-800"] = replace(_LIGHTLY, epochs=800)

# ---- C_simclr_pretrain.ipynb of ChaoYue0307/ropedia-academy at 72c2d60
PRESETS["ropedia-digits"] = Config(
    experiment="digits", dataset="sklearn/digits", projection=64, train_images=1_257, test_images=540, batch_size=256,
    pretrain_steps=2_501, optimizer="adam", lr=1.5e-3, weight_decay=0.0, warmup_epochs=0, linear_labels=60,
    linear_draws=8, linear_epochs=500, linear_lr=1e-2,
)  # fmt: skip

# ---- the paper's ImageNet trends, scaled to CIFAR-10: ResNet-18, 100 epochs of the README's recipe
_SCALED = replace(PRESETS["readme-r18"], epochs=100)
_CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "crop-only": {"jitter": 0.0, "grey": 0.0},
    "colour-only": {"crop": False},
    "head-linear": {"head": "linear"},
    "head-none": {"head": "none"},
    "tau0.05": {"temperature": 0.05},
    "tau1": {"temperature": 1.0},
    "inner-product": {"normalised": False, "temperature": 10.0},
    "sqrt-256": {"batch_size": 256, "lr_scaling": "sqrt", "lr": 0.075},
    "linear-256": {"batch_size": 256, "lr": 0.3},
}
for _name, _change in _CHANGES.items():
    PRESETS[f"cifar-{_name}"] = replace(_SCALED, **_change)

# ---- Ours: a quarter as wide, ten layers, some epochs; the classifier sees whole pictures, encoded once
_LAPTOP = replace(
    _B9, depth=10, width=0.25, batch_size=256, epochs=5, warmup_epochs=0.5, linear_crops=False, linear_epochs=50,
)  # fmt: skip
PRESETS["laptop"] = _LAPTOP
PRESETS["laptop-random"] = replace(_LAPTOP, lr=0.0, epochs=1)
PRESETS["laptop-n1024"] = replace(_LAPTOP, batch_size=1024)
PRESETS["laptop-tau0.1"] = replace(_LAPTOP, temperature=0.1)
PRESETS["laptop-tau1"] = replace(_LAPTOP, temperature=1.0)
PRESETS["laptop-crop-only"] = replace(_LAPTOP, jitter=0.0, grey=0.0)
PRESETS["laptop-colour-only"] = replace(_LAPTOP, crop=False)
PRESETS["laptop-head-none"] = replace(_LAPTOP, head="none")
PRESETS["smoke"] = replace(
    _LAPTOP, dataset="synthetic/20x20x3", width=0.125, projection=16, train_images=256, test_images=64, batch_size=32,
    epochs=1, warmup_epochs=0.25, lr_scaling="sqrt", lr=0.0002, blur=0.5, linear_epochs=1, linear_batch_size=32,
    linear_crops=True, neighbours=256,
)  # fmt: skip
