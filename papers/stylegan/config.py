"""Configurations A to F (Table 1), mixing (Table 2), depths of the mapping (Table 4), and our own cut-down ones."""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """Defaults: configuration F on FFHQ. "code" is train.py of NVlabs/stylegan at 1e0d5c7, for eight GPUs."""

    dataset: str = "stylegan/ffhq"  # folder of pictures at DIR/hub/<dataset>; a data set id; generated/factors-32
    resolution: int = 1024  # side of what is generated (Section 2)
    mapping_layers: int = 8  # fully connected, 512 units each; 0: w is z normalised (Section 2; Table 4)
    styles: bool = True  # AdaIN (configuration C); without: pixel norm
    constant: bool = True  # learned 4x4 input (configuration D); without: a dense layer
    noise: bool = True  # noise inputs (configuration E)
    blurred: bool = True  # 1-2-1 filter after upsampling and before downsampling (configuration B)
    mixing: float = 0.9  # probability of mixing two latents in training (configuration F)
    latents: int = 512  # size of z and w (Section 2)
    base: int = 8192  # maps of a layer: base / 2^(log2 of its side - 1) (code: fmap_base)
    most: int = 512  # ... but at most (code: fmap_max)
    loss: Literal["logistic", "wgan"] = "logistic"  # non-saturating with R1; or WGAN-GP (A and CelebA-HQ)
    gamma: float = 10.0  # R1: gamma / 2 times the squared gradient (Appendix C)
    penalty: float = 10.0  # WGAN-GP: weight of (gradient norm - 1)² (code: wgan_lambda)
    drift: float = 0.001  # WGAN-GP: weight of the squared score of real pictures (code: wgan_epsilon)
    group: int = 4  # pictures among which D sees the deviation (code: mbstd_group_size)
    start: int = 8  # resolution at the beginning (Appendix C)
    stable_images: int = 600_000  # at a resolution before the next is faded in (code)
    fade_images: int = 600_000  # during which it is (code)
    total_images: int = 25_000_000  # real pictures shown (Appendix C)
    repeats: int = 4  # minibatches before the schedule is looked at again (code)
    batch_sizes: tuple[int, ...] = (512, 256, 128, 64, 32)  # at 4x4, 8x8, ...; the last one goes on (code)
    lrs: tuple[float, ...] = (0.001,) * 5 + (0.0015, 0.002, 0.003)  # Adam's, likewise (code)
    mapping_lr: float = 0.01  # times lr, in the mapping network (Appendix C)
    beta1: float = 0.0  # code
    beta2: float = 0.99  # code
    ema_images: int = 10_000  # half-life of the average of G's weights, of which all samples are (code)
    w_decay: float = 0.995  # of the running mean of w (code)
    mirror: bool = True  # half of the real pictures (code)
    psi: float = 0.7  # truncation, in the pictures for the eye only (Appendix B; code)
    truncated_layers: int = 8  # the first layers, where it acts (code)
    sample_images: int = 500_000  # between sample grids at fixed latents
    judge: Literal["inception", "classifier", "none"] = "inception"  # whose features samples are judged by
    judge_samples: int = 50_000  # and as many training pictures (Section 2.1)
    judge_images: int = 500_000  # between looks, of which the best counts (Table 1's caption); 0: at the end only
    judge_latents: tuple[int, ...] = (1,)  # latents mixed in a sample (Table 2: 1 to 4)
    path_pairs: int = 0  # of each perceptual path length (Section 4.1: 100,000, with VGG16: not here)
    separability_samples: int = 0  # half of which are kept (Section 4.2: 200,000); drawn factors only
    judge_batch: int = 100  # pictures at a time; speed only


PRESETS: dict[str, Config] = {}

# ---- Table 1. A: a progressive GAN (networks_progan.G_paper, from 4x4, 12 million pictures)
_PLAIN: dict[str, Any] = {"mapping_layers": 0, "styles": False, "constant": False, "noise": False, "mixing": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "A": _PLAIN | {"blurred": False, "loss": "wgan", "start": 4, "total_images": 12_000_000},
    "B": _PLAIN,
    "C": {"constant": False, "noise": False, "mixing": 0.0},
    "D": {"noise": False, "mixing": 0.0},
    "E": {"mixing": 0.0},
    "F": {},
}
# ---- Tables 2 and 4
MORE: dict[str, dict[str, Any]] = {
    "mix50": {"mixing": 0.5},
    "mix100": {"mixing": 1.0},
    "traditional-8": _PLAIN | {"mapping_layers": 8},
    "depth-0": {"mapping_layers": 0},
    "depth-1": {"mapping_layers": 1},
    "depth-2": {"mapping_layers": 2},
}
_TABLE2 = ("E", "F", "mix50", "mix100")  # the rows whose samples are mixed of one to four latents
for _name, _change in (ARMS | MORE).items():
    _latents = {"judge_latents": (1, 2, 3, 4)} if _name in _TABLE2 else {}
    PRESETS[f"ffhq-{_name}"] = Config(**(_change | _latents))
_CELEBA: dict[str, Any] = {"dataset": "stylegan/celebahq", "judge_samples": 30_000}
for _name, _change in ARMS.items():
    _lrs = {} if _name == "A" else {"lrs": (0.001,) * 5 + (0.0015, 0.002)}  # code: with WGAN-GP no more than 0.002
    PRESETS[f"celebahq-{_name}"] = Config(**(_CELEBA | {"loss": "wgan"} | _lrs | _change))

# ---- Ours: 32x32, the same nets narrower, judged by the project's own classifier
_SMALL = Config(
    resolution=32,
    latents=64,
    base=128,
    most=64,
    stable_images=8_000,
    fade_images=8_000,
    total_images=48_000,
    batch_sizes=(32,),
    lrs=(0.003,),
    ema_images=2_000,
    sample_images=6_000,
    judge="classifier",
    judge_samples=5_000,
    judge_images=0,
    path_pairs=2_000,
)
_SETS: dict[str, dict[str, Any]] = {
    "mnist": {"dataset": "ylecun/mnist", "mirror": False},
    "cifar10": {"dataset": "uoft-cs/cifar10"},
    "factors": {"dataset": "generated/factors-32", "mirror": False, "separability_samples": 10_000},
}
for _set, _of in _SETS.items():
    for _name, _change in (ARMS | MORE).items():
        if _name == "A":
            _change = _change | {"start": 8, "total_images": _SMALL.total_images}
        _latents = {"judge_latents": (1, 2, 3, 4)} if _name in _TABLE2 else {}
        PRESETS[f"{_set}-{_name}"] = replace(_SMALL, **(_of | _change | _latents))
        PRESETS[f"gpu-{_set}-{_name}"] = replace(
            PRESETS[f"{_set}-{_name}"], base=2048, most=256, latents=256, stable_images=150_000, fade_images=150_000,
            total_images=2_000_000, ema_images=10_000, sample_images=100_000, judge_samples=10_000, path_pairs=10_000,
        )  # fmt: skip

PRESETS["laptop"] = replace(PRESETS["mnist-F"], total_images=36_000, judge_latents=(1,), path_pairs=500)
PRESETS["smoke"] = Config(
    dataset="synthetic/16x16x1",
    resolution=16,
    mapping_layers=2,
    constant=False,  # normalised, a constant magnifies rounding until it varies: two processes would not agree on it
    latents=8,
    base=32,
    most=8,
    group=2,
    stable_images=16,
    fade_images=16,
    total_images=80,
    repeats=2,
    batch_sizes=(8, 8, 4),
    lrs=(0.0002,),
    ema_images=40,
    sample_images=40,
    judge="classifier",
    judge_samples=200,
    judge_images=48,
    judge_latents=(1, 2),
)
