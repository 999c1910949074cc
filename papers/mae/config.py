"""The paper's protocols (Tables 1 to 3, 8 to 12, Figures 5 and 9), two by others, and our scaled trends."""

from dataclasses import dataclass, replace
from typing import Any, Literal

IMAGENET, CIFAR, TIMED = "ILSVRC/imagenet-1k", "uoft-cs/cifar10", "generated/timing"
MNIST = "ylecun/mnist"


@dataclass(frozen=True)
class Config:
    """Defaults: ViT-L on ImageNet for 800 epochs (Table 1). "code" is facebookresearch/mae at efb2a80."""

    dataset: str = IMAGENET  # data set id; ImageNet is streamed, others are kept whole; generated/timing takes times
    train_images: int = 1_281_167  # first ones of the training split; of a set kept whole the others are for validation
    test_images: int = 50_000  # of the test (validation) split
    resolution: int = 224  # side of the picture (Section 4)
    patch: int = 16  # side of a patch (Section 4: ViT-L/16; Table 3: ViT-H/14)
    width: int = 1024  # of the encoder (ViT-L)
    depth: int = 24  # blocks of the encoder (ViT-L)
    heads: int = 16  # of the encoder (ViT-L)
    decoder_width: int = 512  # Table 1b
    decoder_depth: int = 8  # blocks of the decoder (Table 1a)
    dialect: Literal["mae", "icaruswizard", "vordmekh"] = "mae"  # whose architecture, start, decay, schedule (README)
    mask: Literal["random", "block", "grid"] = "random"  # which patches are masked (Table 1f)
    mask_ratio: float = 0.75  # share of them (Section 4.1)
    mask_tokens: Literal["decoder", "encoder"] = "decoder"  # where they come in (Table 1c)
    target: Literal["pixel", "normalised"] = "pixel"  # Table 1d; Table 3: each patch normalised (code: norm_pix_loss)
    loss_on: Literal["masked", "all"] = "masked"  # patches whose error counts (Section 3)
    crop: Literal["none", "fixed", "random"] = "random"  # pre-training (Table 1e): 20 to 100 % of the area (code); flip
    batch_size: int = 4_096  # of pre-training, global (Table 8)
    base_lr: float = 1.5e-4  # for 256 pictures (Table 8): lr = base_lr * batch_size / 256
    weight_decay: float = 0.05  # Table 8
    epochs: int = 800  # of pre-training (Table 1; Table 3: 1600); with generated/timing: steps that are timed
    warmup_epochs: float = 40.0  # Table 8
    dropout: float = 0.0  # of attention weights and all branches, in pre-training and fine-tuning (vordmekh alone)
    evaluations: tuple[str, ...] = ("finetune", "linear")  # linear, random, knn, finetune, scratch, partial-<n>
    pool: Literal["token", "mean"] = "token"  # what they classify: class token or mean of the patches (A.1: either)
    linear_epochs: int = 90  # a ninth of them warms up (Table 10)
    linear_batch_size: int = 16_384  # Table 10
    linear_base_lr: float = 0.1  # Table 10
    linear_weight_decay: float = 0.0  # of vordmekh's probe, by AdamW (Table 10: 0)
    neighbours: int = 5  # of knn, which looks among the training pictures by the cosine of features (vordmekh: knn.py)
    tune_epochs: int = 50  # of fine-tuning (Table 9: 100 for B, 50 for L and H)
    tune_warmup_epochs: float = 5.0  # Table 9
    tune_batch_size: int = 1_024  # Table 9
    tune_base_lr: float = 1e-3  # Table 9
    tune_weight_decay: float = 0.05  # Table 9
    layer_decay: float = 0.75  # lr of a layer over that of the next (Table 9); from scratch all learn alike (Table 11)
    drop_path: float = 0.1  # share of branches left out in the last block, rising from 0 (Table 9)
    tune_augment: Literal["none", "fixed", "strong"] = "strong"  # crop and flip, or RandAug, mixup, cutmix (Table 9)
    ema: float = 0.0  # decay of averaged weights, of training from scratch alone (Table 11: 0.9999); 0: none

    @property
    def classes(self) -> int:
        return 1_000 if self.dataset == IMAGENET else 10

    @property
    def decoder_heads(self) -> int:
        """Heads of 32 units (code: 16 for 512); the others: as many as the encoder's."""
        return max(1, self.decoder_width // 32) if self.dialect == "mae" else self.heads

    @property
    def channels(self) -> int:
        """Of a picture; VordMekh_project's digits are grey."""
        return 1 if self.dialect == "vordmekh" else 3

    @property
    def lr(self) -> float:
        return self.base_lr * self.batch_size / 256

    @property
    def tune_lr(self) -> float:
        return self.tune_base_lr * self.tune_batch_size / 256


# ---- Table 1, Figures 5 and 9: ViT-L
PRESETS: dict[str, Config] = {"table1": Config()}
for _name, _change in {
    **{f"depth{n}": {"decoder_depth": n} for n in (1, 2, 4, 12)},
    **{f"width{n}": {"decoder_width": n} for n in (128, 256, 768, 1024)},
    "mask-tokens": {"mask_tokens": "encoder"},
    "normalised": {"target": "normalised"},
    "crop-none": {"crop": "none"},
    "crop-fixed": {"crop": "fixed"},
    "block50": {"mask": "block", "mask_ratio": 0.5},
    "block75": {"mask": "block"},
    "grid75": {"mask": "grid"},
    "ratio10": {"mask_ratio": 0.1},
}.items():
    PRESETS[f"table1-{_name}"] = replace(Config(), **_change)  # type: ignore[arg-type]
PRESETS["fig9"] = Config(evaluations=("linear", "partial-0.5", "partial-1", "partial-4", "finetune"))

# ---- Tables 3 and 12: all sizes, 1600 epochs; Table 11: from scratch
SIZES: dict[str, dict[str, Any]] = {
    "b": {"width": 768, "depth": 12, "heads": 12, "tune_epochs": 100},
    "l": {},
    "h": {"width": 1280, "depth": 32, "heads": 16, "patch": 14, "drop_path": 0.2},
}
for _name, _change in SIZES.items():
    PRESETS[f"table3-{_name}"] = Config(epochs=1_600, target="normalised", **_change)
    PRESETS[f"table3-{_name}-scratch"] = replace(
        PRESETS[f"table3-{_name}"], epochs=0, evaluations=("scratch",), tune_epochs=300 if _name == "b" else 200,
        tune_warmup_epochs=20.0, tune_batch_size=4_096, tune_base_lr=1e-4, tune_weight_decay=0.3, ema=0.9999,
    )  # fmt: skip

# ---- Table 2: seconds a step on generated pictures, `epochs` steps of each kind taking turns; one core: ViT-S
for _name in ("l", "h"):
    PRESETS[f"table2-{_name}"] = replace(
        PRESETS[f"table3-{_name}"], dataset=TIMED, target="pixel", batch_size=64, epochs=10, evaluations=()
    )
PRESETS["timing"] = replace(
    PRESETS["table2-l"], width=384, depth=12, heads=6, decoder_width=128, decoder_depth=8, batch_size=8, epochs=7,
)  # fmt: skip

# ---- IcarusWizard/MAE at 11c21fc: ViT-Tiny, patches of 2, no augmentation (mae_pretrain.py, train_classifier.py)
_SMALL = Config(
    dataset=CIFAR, train_images=50_000, test_images=10_000, resolution=32, patch=2, width=192, depth=12, heads=3,
    decoder_width=192, decoder_depth=4, crop="none", tune_augment="none", drop_path=0.0,
)  # fmt: skip
PRESETS["icaruswizard"] = replace(
    _SMALL, dialect="icaruswizard", epochs=2_000, warmup_epochs=200.0, evaluations=("finetune", "scratch"),
    tune_epochs=100, tune_batch_size=128, layer_decay=1.0,
)  # fmt: skip
PRESETS["icaruswizard-400"] = replace(PRESETS["icaruswizard"], epochs=400, warmup_epochs=40.0)

# ---- VordMekh_project at 0320259: digits in patches of 7 (mae.py, knn.py, classify.py); 30 % of the steps warm up
PRESETS["vordmekh-50"] = Config(
    dataset=MNIST, train_images=60_000, test_images=10_000, resolution=28, patch=7, width=128, depth=4, heads=4,
    decoder_width=64, decoder_depth=2, dialect="vordmekh", crop="none", batch_size=256, base_lr=1.5e-3, epochs=50,
    warmup_epochs=15.0, dropout=0.1, evaluations=("knn", "linear"), pool="mean", linear_epochs=50,
    linear_batch_size=256, linear_base_lr=1e-3, linear_weight_decay=0.05, tune_epochs=10, tune_warmup_epochs=0.0,
    tune_batch_size=256, layer_decay=1.0, drop_path=0.0, tune_augment="none",
)  # fmt: skip
PRESETS["vordmekh-50-tuned"] = replace(PRESETS["vordmekh-50"], evaluations=("finetune",))
PRESETS["vordmekh-300"] = replace(PRESETS["vordmekh-50"], epochs=300, warmup_epochs=90.0)
PRESETS["vordmekh-random"] = replace(PRESETS["vordmekh-50"], epochs=0, evaluations=("random",))

# ---- the paper's trends, scaled to CIFAR-10: ViT-Tiny with patches of 4
_SCALED = replace(
    _SMALL, patch=4, decoder_width=96, decoder_depth=4, crop="random", batch_size=512, epochs=400, warmup_epochs=20.0,
    evaluations=("linear", "random", "finetune", "scratch", "partial-0.5", "partial-1", "partial-4"), tune_epochs=50,
    base_lr=5e-4, pool="mean", linear_batch_size=1_024, linear_base_lr=5.0, tune_batch_size=256, tune_augment="fixed",
)  # fmt: skip
# eleven minutes of one core: four blocks of width 96, the last 5,000 training pictures for validation, by which base_lr
# and linear_base_lr were chosen (seed 0; the latter is the better one for the random encoder, too)
_LAPTOP = replace(
    _SCALED, train_images=45_000, width=96, depth=4, decoder_width=64, decoder_depth=1, crop="none", batch_size=256,
    base_lr=2.5e-3, epochs=12, warmup_epochs=1.0, evaluations=("linear", "random"),
)  # fmt: skip
PRESETS["cifar"], PRESETS["laptop"] = _SCALED, _LAPTOP
PRESETS["laptop-tune"] = replace(
    _LAPTOP, epochs=6, evaluations=("finetune", "scratch"), tune_epochs=2, tune_warmup_epochs=0.25, tune_batch_size=128,
    tune_base_lr=2e-3,
)  # fmt: skip
_CHANGES: dict[str, dict[str, Any]] = {
    "depth1": {"decoder_depth": 1},
    "mask-tokens": {"mask_tokens": "encoder"},
    "normalised": {"target": "normalised"},
    "crop-none": {"crop": "none"},
    "block75": {"mask": "block"},
    "grid75": {"mask": "grid"},
    "loss-all": {"loss_on": "all"},
    **{f"ratio{n}": {"mask_ratio": n / 100} for n in (25, 40, 60, 80)},
}
for _name, _change in _CHANGES.items():
    PRESETS[f"cifar-{_name}"] = replace(_SCALED, evaluations=("linear", "finetune"), **_change)
for _name in ("normalised", "block75", "grid75", "ratio25", "loss-all"):
    PRESETS[f"laptop-{_name}"] = replace(_LAPTOP, evaluations=("linear",), **_CHANGES[_name])
PRESETS["smoke"] = replace(
    _LAPTOP, dataset="synthetic/32x32x3", train_images=448, test_images=128, patch=8, width=24, depth=2, heads=2,
    decoder_width=16, crop="random", target="normalised", batch_size=64, epochs=1, linear_epochs=2,
    linear_batch_size=64, evaluations=("linear", "random", "finetune", "scratch", "partial-0.5"), tune_epochs=1,
    tune_warmup_epochs=0.5, tune_batch_size=64, drop_path=0.2, tune_augment="fixed", ema=0.9,
)  # fmt: skip
