"""The paper's experiments as their folders are shared, its ablations, and the same on domains drawn by the program."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Config:
    """Defaults: Cityscapes, photos (X) and labels (Y). "code" is junyanz/pytorch-CycleGAN-and-pix2pix at c941617."""

    dataset: str = "cyclegan/cityscapes"  # folder of trainA, trainB, testA, testB; generated/<what>-<side> is drawn
    train_pictures: int = 0  # drawn pictures of each domain to train on, of different scenes; folders: all
    test_pictures: int = 0  # drawn pairs to test on; folders: all
    load_size: int = 143  # side to which pictures are resized (code: 143 for 128; issue 150)
    crop_size: int = 128  # side of a random cut-out of that (Section 5.1: 128 for Cityscapes; elsewhere 256)
    flip: bool = True  # mirror half of the pictures (code)
    paired: bool = False  # the pictures of a step are partners, and L1 to the partner takes the cycles' place (ours)
    generator_width: int = 64  # channels of G's first convolution (Appendix 7.2)
    blocks: int = 6  # residual blocks: 6 at 128, 9 at 256 and above (Appendix 7.2)
    discriminator_width: int = 64  # channels of D's first convolution (Appendix 7.2)
    discriminator_layers: int = 3  # its convolutions of stride 2; 3 sees patches of 70 (Section 4, Appendix 7.2)
    init_sd: float = 0.02  # standard deviation of all weights (Appendix 7.1)
    gan: bool = True  # both adversarial losses (Equation 3); without: "cycle alone" (Tables 4 and 5)
    lambda_forward: float = 10.0  # weight of x -> G(x) -> F(G(x)) (Section 4); 0: no such pass
    lambda_backward: float = 10.0  # weight of y -> F(y) -> G(F(y)) (Section 4); 0: no such pass
    lambda_identity: float = 0.0  # of G(y) = y and F(x) = x, times the lambdas (Section 5.2: 0.5, paintings; code: 0.5)
    pool_size: int = 50  # pictures kept for the discriminators (Section 4)
    batch_size: int = 1  # Appendix 7.1; global
    lr: float = 0.0002  # Appendix 7.1
    beta1: float = 0.5  # code
    beta2: float = 0.999  # code
    constant_epochs: int = 100  # at lr (Appendix 7.1); an epoch has the pictures of the larger domain
    decay_epochs: int = 100  # linearly towards zero (Appendix 7.1)
    sample_pictures: int = 6  # training pictures of each domain whose translations are kept over time


PRESETS: dict[str, Config] = {}

# ---- Tables 4 and 5 are two views of the same runs: "forward" is the cycle that starts at the task's input, so the
# photo's cycle is Table 5's forward and Table 4's backward one.
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "cycle-alone": {"gan": False},
    "gan-alone": {"lambda_forward": 0.0, "lambda_backward": 0.0},
    "photo-cycle": {"lambda_backward": 0.0},
    "label-cycle": {"lambda_forward": 0.0},
}
for _arm, _changes in ARMS.items():
    PRESETS[f"cityscapes-{_arm}"] = replace(Config(), **_changes)

# ---- The other collections, by their folders' names
_LARGE = Config(load_size=286, crop_size=256, blocks=9)
for _name in ("maps", "horse2zebra", "apple2orange", "summer2winter_yosemite", "facades"):
    PRESETS[_name] = replace(_LARGE, dataset=f"cyclegan/{_name}")
for _name in ("monet2photo", "vangogh2photo", "cezanne2photo", "ukiyoe2photo"):
    PRESETS[_name] = replace(_LARGE, dataset=f"cyclegan/{_name}", lambda_identity=0.5)

# ---- Ours: drawn streets, whose true pairs are known. The discriminator's patches keep their share of the picture.
_DRAWN: dict[int, Config] = {
    32: Config(
        dataset="generated/streets-32",
        train_pictures=1_000,
        test_pictures=200,
        load_size=32,
        crop_size=32,
        generator_width=16,
        blocks=3,
        discriminator_width=32,
        discriminator_layers=1,
        constant_epochs=6,
        decay_epochs=6,
    )
}
_DRAWN[64] = replace(
    _DRAWN[32],
    dataset="generated/streets-64",
    load_size=64,
    crop_size=64,
    generator_width=32,
    blocks=4,
    discriminator_layers=2,
)
for _side, _base in _DRAWN.items():
    for _arm, _changes in ARMS.items():
        PRESETS[f"drawn{_side}-{_arm}"] = replace(_base, **_changes)
    PRESETS[f"drawn{_side}-paired"] = replace(_base, dataset=f"{_base.dataset}-paired", paired=True)
for _what in ("colours", "shapes"):
    PRESETS[f"drawn32-{_what}"] = replace(_DRAWN[32], dataset=f"generated/{_what}-32")

PRESETS["laptop"] = replace(_DRAWN[32], constant_epochs=1, decay_epochs=1)
PRESETS["smoke"] = Config(
    dataset="synthetic/colours-16",  # no classes: what is measured is continuous, as two processes must agree on it
    train_pictures=6,
    test_pictures=6,
    load_size=18,
    crop_size=16,
    generator_width=4,
    blocks=1,
    discriminator_width=4,
    discriminator_layers=1,
    lambda_identity=0.5,
    pool_size=3,
    batch_size=2,
    lr=0.00005,  # rounding grows tenfold an update where a ReLU is on its edge: a small step keeps it small
    constant_epochs=1,
    decay_epochs=1,
    sample_pictures=2,
)
