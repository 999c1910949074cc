"""Every protocol as data: the CIFAR-10 nets of Section 3.3 and Figure 1, the ImageNet net and its ablations, MNIST."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Config:
    """Defaults: the net with response normalisation of Section 3.3 (11 %).

    "cfg": layers- and layer-params-conv-local-11pct.cfg of cuda-convnet (dnouri/cuda-convnet at e4ac0c1).
    Where a field has several values they are those of the layers, from the input upwards, or of the stages in turn.
    """

    dataset: str = "uoft-cs/cifar10"  # data set id; synthetic/32x32x3 is drawn by the program
    train_images: int = 50_000  # images of the training split that are used, the first ones
    net: Literal["cifar", "imagenet", "mnist"] = "cifar"  # Section 3.3's four layers, Figure 2's eight, DL-LAB's eight
    activations: tuple[str, ...] = ("relu",)  # one net is trained for each, on the same batches (Figure 1: relu, tanh)
    maps: tuple[int, ...] = (64, 32)  # of the locally connected layers (cfg), or of the convolutions (Section 3.5)
    groups: tuple[int, ...] = ()  # columns that a convolution's connections fall into: two GPUs (Figure 2)
    hidden: int = 4096  # units of each hidden fully connected layer of the ImageNet net (Section 3.5)
    lrn: bool = True  # local response normalisation (Section 3.3)
    pool: int = 3  # z, width of the pooling windows; their stride is 2 (Section 3.4)
    size: int = 24  # crop that the net sees (cfg header: crop border 4; Section 4.1: 224)
    augment: bool = True  # random crops and reflections (Section 4.1); False: the centre alone
    colour: float = 0.0  # standard deviation of the colour noise along the principal components (Section 4.1: 0.1)
    statistics_images: int = 50_000  # first training images that give the mean image and the principal components
    dropout: bool = False  # keep half of the hidden units of the fully connected layers (Section 4.2)
    initial: Literal["normal", "torch"] = "normal"  # init_sd and init_bias, or torch's default (DL-LAB)
    init_sd: tuple[float, ...] = (0.0001, 0.01, 0.04, 0.04, 0.01)  # initial weights ~ N(0, sd^2) (cfg: initW)
    init_bias: tuple[float, ...] = (0.0,) * 5  # initial biases (cfg: initB, 0; Section 5)
    batch_size: int = 128  # Section 5; cuda-convnet's default; global
    data_batch: int = 10_000  # images in a file of the data set; its last minibatch is as small as it comes (data.cu)
    shuffle: bool = False  # cuda-convnet goes through the files in order and shuffles nothing (data.py)
    stage_epochs: tuple[int, ...] = (350, 150, 10, 10)  # epochs of each stage (cfg header)
    stage_files: tuple[int, ...] = (4, 5, 5, 5)  # files trained on in each stage: the fifth is folded in (cfg header)
    stage_lr: tuple[float, ...] = (1.0, 1.0, 0.1, 0.01)  # multiplier of lr in each stage (cfg header)
    optimizer: Literal["sgd", "adam"] = "sgd"  # with momentum (Section 5), or Adam as torch has it (DL-LAB)
    lr: tuple[float, ...] = (0.001,)  # step of the weights (cfg: epsW), one per net
    bias_lr: float = 2.0  # step of the biases over that of the weights (cfg: epsB 0.002)
    bias_lr_falls: bool = False  # lower it with the stages too (cfg header: only epsW is lowered)
    momentum: float = 0.9  # Section 5; cfg: momW, momB
    weight_decay: tuple[float, ...] = (0.0, 0.0, 0.004, 0.004, 0.01)  # L2 on the weights (cfg: wc); biases have none
    target_error: float = 0.0  # training error in percent whose first epoch is reported (Figure 1: 25); 0: none
    test_split: str = "test"  # where the errors are measured, once, after the last step
    test_images: int = 10_000  # of that split

    @property
    def epochs(self) -> int:
        return sum(self.stage_epochs)


PRESETS: dict[str, Config] = {}

# ---- Section 3.3: with and without response normalisation, as the two configurations have it
PRESETS["sec3.3-lrn"] = Config()
PRESETS["sec3.3-no-lrn"] = replace(
    PRESETS["sec3.3-lrn"],
    maps=(32, 32),
    lrn=False,
    stage_epochs=(100, 40, 10, 10),
    weight_decay=(0.0, 0.0, 0.004, 0.004, 0.004),
)
# The two also differ in width, decay and length: two controlled pairs, of which the normalisation alone is toggled
PRESETS["clean-11pct-no-lrn"] = replace(PRESETS["sec3.3-lrn"], lrn=False)
PRESETS["clean-13pct-lrn"] = replace(PRESETS["sec3.3-no-lrn"], lrn=True)

# ---- Sections 3.4 and 4.1 on CIFAR-10: overlapping pooling, colour
PRESETS["clean-13pct-lrn-pool2"] = replace(PRESETS["clean-13pct-lrn"], pool=2)
PRESETS["clean-13pct-lrn-colour"] = replace(PRESETS["clean-13pct-lrn"], colour=0.1)

# ---- Figure 1: ReLU against tanh, without regularisation of any kind, each at its own best constant learning rate
# Learning rates: out of a grid, by the training error of short runs (README).
PRESETS["fig1"] = replace(
    PRESETS["sec3.3-no-lrn"],
    activations=("relu", "tanh"),
    augment=False,
    stage_epochs=(100,),
    stage_files=(5,),
    stage_lr=(1.0,),
    lr=(0.003, 0.01),
    weight_decay=(0.0,) * 5,
    target_error=25.0,
)

# ---- The ImageNet net (Figure 2)
PRESETS["table2-1cnn"] = Config(
    dataset="ILSVRC/imagenet-1k",
    train_images=1_281_167,
    net="imagenet",
    maps=(96, 256, 384, 384, 256),
    groups=(1, 2, 1, 2, 2),
    size=224,
    colour=0.1,
    statistics_images=1_281_167,
    dropout=True,
    init_sd=(0.01,) * 8,
    init_bias=(0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    shuffle=True,
    stage_epochs=(30, 20, 20, 20),
    stage_files=(),
    stage_lr=(1.0, 0.1, 0.01, 0.001),
    lr=(0.01,),
    bias_lr=1.0,
    bias_lr_falls=True,
    weight_decay=(0.0005,) * 8,
    test_split="validation",
    test_images=50_000,
)
PRESETS["table1-cnn"] = replace(
    PRESETS["table2-1cnn"],
    dataset="ILSVRC/imagenet-2010",
    train_images=1_261_406,
    statistics_images=1_261_406,
    test_split="test",
    test_images=150_000,
)
PRESETS["sec3.3-imagenet-no-lrn"] = replace(PRESETS["table1-cnn"], lrn=False)
PRESETS["sec3.4-imagenet-pool2"] = replace(PRESETS["table1-cnn"], pool=2)
PRESETS["sec3.2-one-gpu"] = replace(PRESETS["table1-cnn"], maps=(48, 128, 192, 192, 256), groups=(1,) * 5)
PRESETS["sec4.1-imagenet-no-colour"] = replace(PRESETS["table1-cnn"], colour=0.0)
PRESETS["sec7-without-conv4"] = replace(
    PRESETS["table1-cnn"],
    maps=(96, 256, 384, 256),
    groups=(1, 2, 1, 2),
    init_sd=(0.01,) * 7,
    init_bias=(0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0),
    weight_decay=(0.0005,) * 7,
)

# ---- An eight-layer net on MNIST: Vishal8500/DL-LAB, Lab-2/AlexNet.ipynb
PRESETS["dl-lab-mnist"] = Config(
    dataset="ylecun/mnist",
    train_images=60_000,
    net="mnist",
    maps=(64, 192, 384, 256, 256),
    lrn=False,
    size=32,
    augment=False,
    statistics_images=0,
    dropout=True,
    initial="torch",
    init_sd=(),
    init_bias=(),
    batch_size=64,
    shuffle=True,
    stage_epochs=(5,),
    stage_files=(),
    stage_lr=(1.0,),
    optimizer="adam",
    bias_lr=1.0,
    weight_decay=(),
)

# ---- Ours: cut down for two cores
PRESETS["laptop"] = replace(PRESETS["sec3.3-no-lrn"], stage_epochs=(1, 1, 1, 1))
PRESETS["laptop-no-lrn"] = replace(PRESETS["sec3.3-no-lrn"], stage_epochs=(4, 2, 1, 1))
PRESETS["laptop-lrn"] = replace(PRESETS["clean-13pct-lrn"], stage_epochs=(4, 2, 1, 1))
PRESETS["laptop-fig1"] = replace(PRESETS["fig1"], stage_epochs=(8,), target_error=45.0)
PRESETS["smoke"] = replace(
    PRESETS["clean-13pct-lrn-colour"],
    dataset="synthetic/32x32x3",
    train_images=256,
    statistics_images=256,
    batch_size=48,
    data_batch=128,
    stage_epochs=(2, 1, 1),
    stage_files=(1, 2, 2),
    stage_lr=(1.0, 0.1, 0.01),
    init_sd=(0.001, 0.01, 0.04, 0.04, 0.1),
    lr=(0.00003,),  # flat strokes make near ties in the pooling: at this step rounding does not decide them
    target_error=100.0,
    test_images=128,
)
