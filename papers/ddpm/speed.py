"""A training step of the CIFAR-10 U-Net, and a network evaluation of sampling, beside diffusers' UNet2DModel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.ema import EMA
from common.speed import Case, Growth, Peer, Step, training
from papers.ddpm.config import Config
from papers.ddpm.diffusion import Diffusion
from papers.ddpm.train import network

BATCH = 8


def drawn(side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """x0, t and eps of a step."""
    x0, eps = (torch.randn(BATCH, 3, side, side) for _ in range(2))
    return x0, torch.randint(1000, (BATCH,)), eps


def ours(side: int = 32) -> Step:
    model, diffusion = network(Config(), side, 3, 0), Diffusion()
    x0, t, eps = (v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for v in drawn(side))
    optimizer, ema = torch.optim.Adam(model.parameters(), 2e-4, fused=True), EMA(model, 0.9999)
    step = training(
        model, optimizer, lambda: diffusion.simple_loss(model(diffusion.q_sample(x0, t, eps), t), x0, x0, eps, t).mean()
    )

    def run() -> None:
        step.run()
        ema.update(model)

    return Step(run, step.parameters)


def unet() -> Any:
    """diffusers' net of google/ddpm-cifar10-32, with the paper's dropout."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2, dropout=0.1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), downsample_padding=0,
        flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=32, attention_head_dim=None,
    )  # fmt: skip


def theirs() -> Step:
    """As diffusers' own training example does it: DDPMScheduler adds the noise, EMAModel averages."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    model, (x0, t, eps) = unet(), drawn()
    scheduler: Any = DDPMScheduler()
    ema = EMAModel(model.parameters(), 0.9999)
    optimizer = torch.optim.Adam(model.parameters(), 2e-4)
    step = training(model, optimizer, lambda: F.mse_loss(model(scheduler.add_noise(x0, eps, t), t).sample, eps))

    def run() -> None:
        step.run()
        ema.step(model.parameters())

    return Step(run, step.parameters)


def sampling(model: nn.Module, channels_last: bool) -> Step:
    x, t, _ = drawn()
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    model.eval()

    @torch.no_grad()
    def run() -> None:
        model(x, t)

    return Step(run)


CASES = {
    "cifar10": Case(
        f"the U-Net of 35.7M parameters, 32x32, batch {BATCH}, Adam and averaged weights",
        ours,
        {"UNet2DModel": Peer("diffusers", theirs)},
        "adam",
    ),
    "cifar10-sampling": Case(
        f"one evaluation of that net, as each of the 1,000 steps of sampling needs it, batch {BATCH}",
        lambda: sampling(network(Config(), 32, 3, 0), True),
        {"UNet2DModel": Peer("diffusers", lambda: sampling(unet(), False))},
    ),
}
GROWTH = Growth("pixels a side", (16, 32, 64), ours)
