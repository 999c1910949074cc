"""Every row of Tables 1 and 2 on CIFAR-10, other people's shorter runs of the same recipe, and our cut-down ones."""

from dataclasses import dataclass, replace
from typing import Any, Literal

CIFAR, MNIST = "uoft-cs/cifar10", "ylecun/mnist"


@dataclass(frozen=True)
class Config:
    """Defaults: CIFAR-10, L_simple with noise prediction. "code" is hojonathanho/diffusion at 1e0dceb."""

    dataset: str = CIFAR  # data set id; synthetic/<h>x<w>x<c> is drawn by the program
    base: int = 128  # channels of the U-Net at full resolution (code: run_cifar.py)
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # times base at each resolution (code; 256x256: 1, 1, 2, 2, 4, 4)
    blocks: int = 2  # residual blocks of a resolution on the way down (Appendix B)
    attention: tuple[int, ...] = (16,)  # sides with self-attention (Appendix B)
    groups: int = 32  # of group normalisation (code: the default of tf.contrib)
    dialect: Literal["ddpm", "diffusers"] = "ddpm"  # whose details of architecture and start (README)
    classes: int = 0  # that the network is told (hf-course: ten digits); 0: none
    dropout: float = 0.1  # Appendix B; LSUN: 0
    flip: bool = True  # random horizontal flips (Appendix B)
    diffusion_steps: int = 1_000  # T (Section 4)
    drawn_steps: int = 0  # the first ones, of which training draws t (hf-course: all but the last); 0: all
    schedule: Literal["linear", "cosine"] = "linear"  # of beta (Section 4; hf-course: Nichol and Dhariwal 2021, Eq. 17)
    beta_start: float = 1e-4  # beta_1 (Section 4)
    beta_end: float = 0.02  # beta_T (Section 4)
    predicts: Literal["eps", "mean", "x0"] = "eps"  # what the network's output means (Section 3.2, Table 2)
    objective: Literal["L", "L_simple"] = "L_simple"  # the bound, or the unweighted squared error (Section 3.4)
    variance: Literal["beta", "posterior", "learned"] = "beta"  # sigma_t^2 (Section 3.2; code: fixedlarge)
    train_images: int = 50_000  # first images of the training split (Section 4)
    batch_size: int = 128  # Appendix B; global
    drop_last: bool = True  # leave out the last, smaller batch of an epoch (unsaid)
    train_steps: int = 800_000  # Appendix B
    lr: float = 2e-4  # Adam's (Appendix B)
    warmup_steps: int = 5_000  # over which lr rises from 0 (code: run_cifar.py)
    clip_norm: float = 1.0  # largest norm of all gradients together (code: run_cifar.py)
    ema_decay: float = 0.9999  # of the averaged weights that everything is measured with (Appendix B)
    nll_images: int = 10_000  # test images whose bound is taken at each t (Table 1: all); 0: none
    nll_train_images: int = 50_000  # training images likewise (Table 1); 0: none
    sampler: str = "ancestral"  # one of sampling.py: ancestral (Algorithm 2), ddim
    sample_steps: int = 1_000  # of the chain that samples (Algorithm 2: T)
    samples: int = 50_000  # samples to be judged (Appendix B: 50k)
    judge: Literal["none", "classifier", "inception"] = "inception"  # whose features; classifier: our own, see README
    judge_raw: bool = False  # judge samples of the weights as they are, too
    grids: int = 8  # pictures of samples during training (ours)

    @property
    def grid_steps(self) -> int:
        return max(1, self.train_steps // max(1, self.grids))


PRESETS: dict[str, Config] = {"paper": Config(judge_raw=True)}  # the others are judged by averaged weights alone

# ---- Table 2, whose fixed rows with noise prediction are Table 1; Section 3.2 adds x0 and the other variance
ROWS: dict[str, dict[str, Any]] = {
    "mu-learned": {"predicts": "mean", "objective": "L", "variance": "learned"},
    "mu-fixed": {"predicts": "mean", "objective": "L"},
    "mu-mse": {"predicts": "mean"},
    "eps-learned": {"objective": "L", "variance": "learned"},
    "eps-fixed": {"objective": "L"},
    "x0": {"predicts": "x0"},
    "posterior-variance": {"variance": "posterior"},
}
for _row, _changes in ROWS.items():
    _table = "sec3.2" if _row in ("x0", "posterior-variance") else "table2"
    PRESETS[f"{_table}-{_row}"] = replace(Config(), **_changes)
PRESETS["sec4-LT"] = Config(  # a closed form of the pictures alone: nothing is trained
    base=32, train_steps=0, nll_images=0, nll_train_images=0, samples=0, judge="none", grids=0
)

# ---- The same recipe stopped earlier (README of tqch/ddpm-torch)
for _steps in (46_800, 93_600, 187_200, 421_200, 795_600):
    PRESETS[f"tqch-{_steps}"] = Config(train_steps=_steps)

# ---- Digits that the network is told (unit 2 of huggingface/diffusion-models-class, on diffusers' UNet2DModel)
PRESETS["hf-course-mnist"] = Config(
    dataset=MNIST,
    base=32,
    multipliers=(1, 2, 2),
    attention=(14, 7),
    dialect="diffusers",
    classes=10,
    dropout=0.0,
    flip=False,
    drawn_steps=999,
    schedule="cosine",
    train_images=60_000,
    drop_last=False,
    train_steps=4_690,
    lr=1e-3,
    warmup_steps=0,
    clip_norm=0.0,
    ema_decay=0.0,
    nll_images=0,
    nll_train_images=0,
    samples=0,
    judge="none",
    grids=1,
)
PRESETS["hf-course-mnist-1"] = replace(PRESETS["hf-course-mnist"], train_steps=469)  # its first epoch

# ---- Ours, cut down by cost alone: the paper's net for minutes of a GPU, a small one for eight minutes of a core
_SHORT: dict[str, Any] = {
    "dataset": "local/cifar10-jpeg75",
    "train_steps": 5_000,
    "warmup_steps": 500,
    "ema_decay": 0.999,
    "nll_images": 100,
    "nll_train_images": 0,
    "samples": 2_000,
    "judge": "classifier",
    "grids": 4,
}
_SMALL: dict[str, Any] = {
    "dataset": MNIST,
    "base": 16,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "attention": (7,),
    "groups": 8,
    "dropout": 0.0,
    "flip": False,
    "train_images": 60_000,
    "batch_size": 64,
    "train_steps": 800,
    "lr": 1e-3,
    "warmup_steps": 100,
    "ema_decay": 0.99,
    "nll_images": 16,
    "nll_train_images": 0,
    "samples": 256,
    "judge": "classifier",
    "grids": 1,
}
for _row, _changes in {"eps-simple": {}, **ROWS}.items():
    PRESETS[f"short-{_row}"] = replace(Config(), **{**_SHORT, **_changes})
    PRESETS[f"small-{_row}"] = replace(Config(), **{**_SMALL, **_changes})
PRESETS["laptop"] = replace(
    PRESETS["small-eps-simple"],
    multipliers=(1, 2, 4),
    train_steps=3_500,
    ema_decay=0.995,
    nll_images=64,
    nll_train_images=64,
    sampler="ddim",
    sample_steps=100,
    samples=1_000,
    judge_raw=True,
    grids=4,
)
PRESETS["smoke"] = replace(
    PRESETS["small-eps-simple"],
    dataset="synthetic/12x12x1",
    base=8,
    multipliers=(1, 2),
    attention=(6,),
    groups=4,
    diffusion_steps=8,
    beta_start=0.01,
    beta_end=0.5,
    train_images=448,
    batch_size=16,
    train_steps=6,
    warmup_steps=2,
    nll_images=8,
    nll_train_images=8,
    sample_steps=8,
    samples=24,
    grids=2,
)
