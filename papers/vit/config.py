"""The paper's protocols (Tables 1 to 5), other people's small ones on CIFAR-10 and MNIST, and our scaled trends."""

from dataclasses import dataclass, replace
from typing import Literal

CIFAR, MNIST, IMAGENET = "uoft-cs/cifar10", "ylecun/mnist", "ILSVRC/imagenet-1k"
IMAGENET_21K, JFT = "local/imagenet-21k", "local/jft-300m"  # in no public place: a copy laid out like the Hub

Dialect = Literal["vision-transformer", "compact-transformers", "vit-cifar", "vit-pytorch", "torch"]
Schedule = Literal["cosine", "linear", "constant", "compact-transformers", "vit-cifar", "vit-pytorch"]


@dataclass(frozen=True)
class Config:
    """Defaults: ViT-B/16 on ImageNet (Tables 1 and 3). "code" is google-research/vision_transformer at c6de1e5."""

    dataset: str = IMAGENET  # data set id; sets of 10,000s of pictures are kept whole, others are streamed
    classes: int = 1_000  # number of labels
    train_images: int = 1_281_167  # pictures of the training split (an epoch's length; streamed sets must have them)
    test_images: int = 50_000  # pictures of the test (validation) split
    resolution: int = 224  # side of the picture the network sees (Section 4.1; fine-tuning: 384, B.1.1)
    patch: int = 16  # P; of a hybrid, in places of the stem's feature map (Table 1 and Section 3.1)
    width: int = 768  # D (Table 1)
    depth: int = 12  # encoder blocks (Table 1); 0 with a stem: the ResNet alone
    heads: int = 12  # attention heads (Table 1)
    mlp: int = 3_072  # hidden units of the MLP (Table 1)
    pool: Literal["token", "mean"] = "token"  # the head sees the class token, or the mean of all patches (D.3)
    positions: Literal["none", "1d", "2d", "relative"] = "1d"  # position embedding (D.4)
    position_layers: Literal["input", "every", "shared"] = "input"  # added once, or in each block (Table 8)
    stages: tuple[int, ...] = ()  # units of each stage of the hybrid's ResNet, with a stem
    stem: Literal["none", "resnet", "small"] = "none"  # root: none (pure ViT); 7x7 / 2 and pool (code); 3x3 / 1
    stem_channels: int = 64  # channels of the root (code: 64 * width_factor)
    pre_logits: bool = False  # one hidden tanh layer in the head, for pre-training (Section 3.1)
    dialect: Dialect = "vision-transformer"  # whose details of architecture and initialisation (README)
    dropout: float = 0.1  # after dense layers but q, k, v, and after adding positions (B.1, Table 3)
    attention_dropout: float = 0.0  # on attention weights (code: 0)
    drop_path: float = 0.0  # stochastic depth of the last block, rising from 0 (not in the paper)
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"  # decay in the gradient, beside it; momentum 0.9 (B.1.1)
    lr: float = 3e-3  # base learning rate (Table 3)
    weight_decay: float = 0.3  # of all parameters (Table 3)
    batch_size: int = 4_096  # global (Section 4.1)
    drop_last: bool = True  # leave out the last, smaller batch of an epoch of a set that is kept whole (unsaid)
    epochs: int = 300  # Table 3; with train_steps = 0
    train_steps: int = 0  # updates, where a protocol counts those (fine-tuning, Table 4)
    warmup_steps: int = 10_000  # linear warm-up (Section 4.1; code, fine-tuning: 500)
    schedule: Schedule = "cosine"  # decay after it (Table 3); those named after codes change once an epoch
    clip_norm: float = 1.0  # largest norm of all gradients together (Table 3: ImageNet only; B.1.1); 0: none
    crop: Literal["inception", "padded", "none"] = "inception"  # random part of the area (code), or pad by 4, cut out
    policy: Literal["none", "autoaugment", "randaugment"] = "none"  # further augmentation (not in the paper)
    policy_first: bool = True  # before the crop (Compact-Transformers, kentaroy47), or after the flip (ViT-CIFAR)
    randaugment_n: int = 2  # operations of RandAugment
    randaugment_m: float = 14.0  # their magnitude, of 30
    mixup: float = 0.0  # Beta parameter; 0: none
    cutmix: float = 0.0  # Beta parameter; with mixup a coin decides
    label_smoothing: float = 0.0  # share of the label spread evenly
    smoothing_spares_label: bool = False  # over the other classes only (ViT-CIFAR)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of each channel, subtracted from [0, 1] (code: (x - 127.5) / 127.5)
    sd: tuple[float, ...] = (0.5, 0.5, 0.5)  # and divided by
    weights: str = ""  # file of pre-trained weights, below the data folder (Section 3.2): the code's .npz, or our .pt

    @property
    def per_epoch(self) -> int:
        whole, rest = divmod(self.train_images, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def steps(self) -> int:
        return self.train_steps or self.epochs * self.per_epoch


# ---- Table 1 and Table 3: pre-training
SIZES = {  # D, blocks, heads, MLP; Ti and S are the code's (configs/models.py)
    "ti": (192, 12, 3, 768), "s": (384, 12, 6, 1536), "b": (768, 12, 12, 3072), "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
}  # fmt: skip
HYBRIDS = {"r50-b16": (3, 4, 9), "r50-l32": (3, 4, 6, 3), "r26-b32": (2, 2, 2, 2), "r26-s32": (2, 2, 2, 2)}


def shape(name: str, base: Config | None = None) -> Config:
    """`b16` is ViT-B/16, `r50-b16` the hybrid with its stem."""
    hybrid = name in HYBRIDS
    short = name.rpartition("-")[2]
    d, depth, heads, mlp = SIZES[short.rstrip("0123456789")]
    patch = 1 if hybrid else int(short.lstrip("tisblh"))
    base = base or Config()
    if hybrid:
        base = replace(base, stem="resnet", stages=HYBRIDS[name])
    return replace(base, width=d, depth=depth, heads=heads, mlp=mlp, patch=patch)


_I21K = Config(dataset=IMAGENET_21K, classes=21_843, train_images=14_197_122, lr=1e-3, weight_decay=0.03, epochs=90)
_I21K = replace(_I21K, schedule="linear", clip_norm=0.0, pre_logits=True)
_JFT = replace(_I21K, dataset=JFT, classes=18_000, train_images=303_000_000, weight_decay=0.1, dropout=0.0, epochs=7)

PRESETS: dict[str, Config] = {}
for _m in ("b16", "b32", "l16", "l32"):
    PRESETS[f"table3-i1k-{_m}"] = shape(_m, Config(pre_logits=True))
    PRESETS[f"table3-i21k-{_m}"] = shape(_m, _I21K)
for _m, _lr, _epochs in (("b32", 8e-4, 7), ("b16", 8e-4, 7), ("l32", 6e-4, 7), ("l16", 4e-4, 14), ("h14", 3e-4, 14)):
    PRESETS[f"table3-jft-{_m}"] = shape(_m, replace(_JFT, lr=_lr, epochs=_epochs))
PRESETS["table3-jft-r50-b16"] = shape("r50-b16", replace(_JFT, lr=8e-4))

# ---- Table 5 (and CIFAR-10 in Table 2): fine-tuning at 384 pixels; lr by the code's configs (the paper tried four)
_FINETUNE = Config(
    resolution=384,
    dropout=0.0,
    optimizer="sgd",
    lr=0.03,
    weight_decay=0.0,
    batch_size=512,
    warmup_steps=500,
    schedule="cosine",
)
_ON = {
    "cifar10": replace(
        _FINETUNE, dataset=CIFAR, classes=10, train_images=50_000, test_images=10_000, train_steps=10_000
    ),
    "imagenet": replace(_FINETUNE, train_steps=20_000),
}
for _data in ("i1k", "i21k", "jft"):
    for _m in ("b16", "b32", "l16", "l32", *(("h14",) if _data != "i1k" else ())):
        for _to, _base in _ON.items():
            if _to == "cifar10" or _data == "i1k":
                PRESETS[f"table5-{_data}-{_m}-{_to}"] = replace(
                    shape(_m, _base), weights=f"weights/vit/{_data}-{_m}.npz"
                )
PRESETS["table5-i21k-b16-cifar10"] = replace(PRESETS["table5-i21k-b16-cifar10"], lr=0.01)
PRESETS["readme-b16-cifar10"] = replace(PRESETS["table5-i21k-b16-cifar10"], train_images=49_000)

PRESETS["readme-b16-cifar10-dropout"] = replace(PRESETS["readme-b16-cifar10"], dropout=0.1)

# ---- other people's protocols on CIFAR-10, from scratch
_MEAN = (0.4914, 0.4822, 0.4465)
_SMALL = Config(
    dataset=CIFAR,
    classes=10,
    train_images=50_000,
    test_images=10_000,
    resolution=32,
    patch=4,
    dropout=0.0,
    batch_size=128,
    epochs=200,
    warmup_steps=0,
    clip_norm=0.0,
    crop="padded",
    policy="autoaugment",
    mean=_MEAN,
    sd=(0.2470, 0.2435, 0.2616),
)
_LITE = replace(  # SHI-Labs/Compact-Transformers, examples/main.py with --model vit_7
    _SMALL,
    dialect="compact-transformers",
    width=256,
    depth=7,
    heads=4,
    mlp=512,
    attention_dropout=0.1,
    drop_path=0.1,
    lr=5e-4,
    weight_decay=3e-2,
    schedule="compact-transformers",
    label_smoothing=0.1,
)
PRESETS["ct-vit-lite-7-4"] = _LITE
PRESETS["ct-vit-lite-6-4"] = replace(_LITE, depth=6)
PRESETS["vit-cifar"] = replace(  # omihub777/ViT-CIFAR, main.py --label-smoothing --autoaugment
    _SMALL,
    dialect="vit-cifar",
    width=384,
    depth=7,
    heads=12,
    mlp=384,
    optimizer="adam",
    lr=1e-3,
    weight_decay=5e-5,
    schedule="vit-cifar",
    policy_first=False,
    label_smoothing=0.1,
    smoothing_spares_label=True,
)
for _epochs in (200, 500, 1000):
    PRESETS[f"kentaroy47-{_epochs}"] = replace(  # vision-transformers-cifar10, train_cifar10.py as it stands
        _SMALL,
        dialect="vit-pytorch",
        width=512,
        depth=6,
        heads=8,
        mlp=512,
        dropout=0.1,
        optimizer="adam",
        lr=1e-4,
        weight_decay=0.0,
        batch_size=512,
        epochs=_epochs,
        schedule="vit-pytorch",
        policy="randaugment",
        sd=(0.2023, 0.1994, 0.2010),
    )

# ---- somebody's first ViT on MNIST: Snehashishd2/Vision-Transformer-ViT-from-Scratch, ViT_enhanced.ipynb
PRESETS["snehashishd2-mnist"] = Config(
    dataset=MNIST,
    classes=10,
    train_images=60_000,
    test_images=10_000,
    resolution=28,
    patch=7,
    width=64,
    depth=4,
    heads=4,
    mlp=128,
    dialect="torch",
    dropout=0.0,
    optimizer="adam",
    lr=1e-3,
    weight_decay=0.0,
    batch_size=64,
    drop_last=False,
    epochs=5,
    warmup_steps=0,
    schedule="constant",
    clip_norm=0.0,
    crop="none",
    mean=(0.0,),
    sd=(1.0,),
)

# ---- the paper's trends, scaled to CIFAR-10: Table 3's recipe of B on JFT (lr, decay, linear) with small pictures
_SCALED = replace(
    _SMALL,
    width=192,
    depth=6,
    heads=3,
    mlp=768,
    lr=8e-4,
    weight_decay=0.1,
    batch_size=512,
    epochs=100,
    warmup_steps=485,
    schedule="linear",
)
# No augmentation but crop and flip, five epochs of 390 updates
_LAPTOP = replace(
    _SCALED, width=64, depth=4, heads=2, mlp=256, batch_size=128, epochs=5, warmup_steps=195, policy="none"
)
_CHANGES: dict[str, dict[str, object]] = {
    "1d": {},
    "none": {"positions": "none"},
    "2d": {"positions": "2d"},
    "relative": {"positions": "relative"},
    "1d-every": {"position_layers": "every"},
    "1d-shared": {"position_layers": "shared"},
    "patch2": {"patch": 2},
    "patch8": {"patch": 8},
    "depth-doubled": {"depth": 12},
    "width-doubled": {"width": 384, "heads": 6, "mlp": 1536},
    "gap": {"pool": "mean"},
    "gap-3e-4": {"pool": "mean", "lr": 3e-4},
    "hybrid": {"stem": "small", "stages": (1, 1, 1), "stem_channels": 16, "patch": 1},
    "cnn": {
        "stem": "small", "stages": (5, 5, 5), "stem_channels": 24, "patch": 1, "depth": 0, "pool": "mean",
        "positions": "none",
    },
}  # fmt: skip
for _name, _change in _CHANGES.items():
    PRESETS[f"cifar-{_name}"] = replace(_SCALED, **_change)  # type: ignore[arg-type]
for _name in ("1d", "none", "patch8", "cnn"):
    PRESETS[f"laptop-{_name}"] = replace(_LAPTOP, **_CHANGES[_name])  # type: ignore[arg-type]
PRESETS["laptop-cnn"] = replace(PRESETS["laptop-cnn"], stages=(2, 2, 2), stem_channels=10, width=160)
PRESETS["laptop"] = PRESETS["laptop-1d"]
PRESETS["smoke"] = replace(
    _LAPTOP,
    dataset="synthetic/32x32x3",
    train_images=512,
    test_images=128,
    patch=8,
    width=24,
    depth=2,
    heads=2,
    mlp=48,
    batch_size=32,
    epochs=1,
    train_steps=12,
    warmup_steps=4,
    policy="autoaugment",
    mixup=0.8,
    cutmix=1.0,
    label_smoothing=0.1,
)
