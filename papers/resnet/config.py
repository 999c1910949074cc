"""Every row of Table 6 and side of Figures 6 and 7 on CIFAR-10, every net of Tables 2 to 4 on ImageNet."""

from dataclasses import dataclass, replace
from typing import Literal

IMAGENET = "ILSVRC/imagenet-1k"
View = Literal["whole", "1-crop", "10-crop", "multi-scale"]


@dataclass(frozen=True)
class Config:
    """Defaults: ResNet-20 on CIFAR-10 (Section 4.2)."""

    dataset: str = "uoft-cs/cifar10"  # small images whole in memory, or ILSVRC/imagenet-1k as a stream
    family: Literal["cifar", "imagenet"] = "cifar"  # network of Section 4.2 or of Table 1
    depth: int = 20  # layers with weights: 6n + 2 (Section 4.2), or a column of Table 1
    shortcut: Literal["A", "B", "C", "none"] = "A"  # option (Section 4.1; CIFAR-10: A, Section 4.2); none: plain
    train_images: int = 50_000  # the first ones; the others, if any, are for validation (Section 4.2: 50k, or 45k/5k)
    test_images: int = 10_000  # all (Section 4.2); ImageNet: 50k for validation (Section 4.1)
    batch_size: int = 128  # Section 4.2; ImageNet: 256 (Section 3.4); global
    drop_last: bool = True  # leave out the last, smaller batch of an epoch, on small images (unsaid)
    group: int = 64  # samples that share normalisation statistics: 128 on two GPUs (Section 4.2); 0: the whole batch
    initial: Literal["fan-in", "fan-out"] = "fan-in"  # of He et al. 2015; fan-out: convolutions alone (rasbt)
    optimizer: Literal["sgd", "adam"] = "sgd"  # with momentum (Section 3.4), or Adam as torch has it (rasbt)
    lr: float = 0.1  # Section 3.4, 4.2
    lr_drops: tuple[int, ...] = (32_000, 48_000)  # divided by 10 from these steps on (Section 4.2)
    train_steps: int = 64_000  # Section 4.2; ImageNet: up to 60e4 (Section 3.4)
    warmup_lr: float = 0.0  # until the training error falls below warmup_error; 0: none (Section 4.2, 110 layers: 0.01)
    warmup_error: float = 80.0  # percent (Section 4.2)
    error_window: int = 50  # steps over which that training error is taken (unsaid)
    momentum: float = 0.9  # Section 3.4, 4.2
    weight_decay: float = 1e-4  # of all parameters (Section 3.4, 4.2)
    crop: int = 32  # side of what the network sees in training (Section 4.2; ImageNet: 224, Section 3.4)
    margin: int = 4  # pixels padded on each side before that crop (Section 4.2), on small images
    flip: bool = True  # mirror half of the images (Section 4.2), small ones
    subtract_mean: bool = True  # of every pixel over the training images (Section 4.2), on small images
    scales: tuple[int, int] = (256, 480)  # shorter side drawn from (Section 3.4), on ImageNet
    colour: float = 0.1  # standard deviation of the PCA colour shift (Section 3.4 by AlexNet), on ImageNet
    clean_images: int = 10_000  # first training images whose error is taken after training (unsaid), small ones
    mean_images: int = 10_000  # training images of which the mean image is made (unsaid), on ImageNet
    test_views: tuple[View, ...] = ("whole",)  # Section 4.2: one; ImageNet: 10-crop, multi-scale (Section 3.4), 1-crop
    test_scales: tuple[int, ...] = (224, 256, 384, 480, 640)  # shorter sides of the multi-scale test (Section 3.4)


PRESETS: dict[str, Config] = {}

# ---- CIFAR-10: Table 6, Figure 6 (left: plain, middle: residual), Figure 7
for _depth in (20, 32, 44, 56, 110, 1202):
    PRESETS[f"table6-resnet{_depth}"] = Config(depth=_depth)
PRESETS["table6-resnet110"] = replace(PRESETS["table6-resnet110"], warmup_lr=0.01)
for _depth in (20, 32, 44, 56, 110, 1202):
    PRESETS[f"table6-resnet{_depth}-45k"] = replace(PRESETS[f"table6-resnet{_depth}"], train_images=45_000)
PRESETS["sec4.2-resnet110-no-warmup"] = Config(depth=110)
for _depth in (20, 32, 44, 56, 110):
    PRESETS[f"fig6-plain{_depth}"] = Config(depth=_depth, shortcut="none")

# ---- ImageNet: Tables 2, 3, 4 and the README of the released models
_IMAGENET = Config(
    dataset=IMAGENET,
    family="imagenet",
    train_images=1_281_167,
    test_images=50_000,
    batch_size=256,
    group=32,
    lr_drops=(150_000, 300_000, 450_000),
    train_steps=600_000,
    crop=224,
    test_views=("1-crop", "10-crop", "multi-scale"),
)
for _depth in (18, 34):
    PRESETS[f"table2-plain{_depth}"] = replace(_IMAGENET, depth=_depth, shortcut="none")
PRESETS["table2-resnet18"] = replace(_IMAGENET, depth=18)
PRESETS["table3-resnet34A"] = replace(_IMAGENET, depth=34)
PRESETS["table3-resnet34B"] = replace(_IMAGENET, depth=34, shortcut="B")
PRESETS["table3-resnet34C"] = replace(_IMAGENET, depth=34, shortcut="C")
for _depth in (50, 101, 152):
    PRESETS[f"table3-resnet{_depth}"] = replace(_IMAGENET, depth=_depth, shortcut="B")

# ---- MNIST: nets of Table 1 on images of 28 pixels (rasbt/deeplearning-models, cnn-resnet18-mnist.ipynb and 34)
for _depth in (18, 34):
    PRESETS[f"rasbt-mnist-resnet{_depth}"] = Config(
        dataset="ylecun/mnist",
        family="imagenet",
        depth=_depth,
        shortcut="B",
        train_images=60_000,
        drop_last=False,
        group=0,
        initial="fan-out",
        optimizer="adam",
        lr=1e-3,
        lr_drops=(),
        train_steps=4_690,
        weight_decay=0.0,
        crop=28,
        margin=0,
        flip=False,
        subtract_mean=False,
        clean_images=60_000,
    )

# ---- Ours: the first 1.5 epochs of the same protocol, its drops at the same fractions
_SHORT = {"train_steps": 600, "lr_drops": (300, 450)}
for _depth in (20, 56):
    PRESETS[f"laptop-plain{_depth}"] = replace(PRESETS[f"fig6-plain{_depth}"], **_SHORT)  # type: ignore[arg-type]
    PRESETS[f"laptop-resnet{_depth}"] = replace(PRESETS[f"table6-resnet{_depth}"], **_SHORT)  # type: ignore[arg-type]
PRESETS["laptop"] = replace(PRESETS["table6-resnet20"], train_steps=1_500, lr_drops=(750, 1_125))
PRESETS["smoke"] = Config(
    dataset="synthetic/32x32x3",
    depth=8,
    train_images=448,
    test_images=128,
    batch_size=16,
    group=8,
    train_steps=6,
    lr_drops=(4, 5),
    warmup_lr=0.01,
    warmup_error=95.0,
    error_window=2,
)
