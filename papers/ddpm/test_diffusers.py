"""The U-Net and the sampler against diffusers' (`UNet2DModel`, `DDPMScheduler`, `DDIMScheduler`), weights mapped."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import nn

from common.random import generator
from papers.ddpm.diffusion import Diffusion
from papers.ddpm.model import Attention, Block, UNet
from papers.ddpm.sampling import SAMPLERS, Jump


def theirs(**changes: object) -> Any:
    """The configuration of google/ddpm-cifar10-32."""
    config = {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "attention_head_dim": None,
    }
    return UNet2DModel(**(config | changes))


def pairs(net: UNet) -> dict[str, nn.Module]:
    """Their names of our layers; of an attention's three projections as one."""
    found: dict[str, nn.Module] = {
        "time_embedding.linear_1": net.time[0],
        "time_embedding.linear_2": net.time[2],
        "conv_in": net.stem,
        "conv_norm_out": net.norm,
        "conv_out": net.head,
    }

    def level(place: str, i: int, block: Block, attention: Attention | None) -> None:
        parts = {"norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
        if block.shortcut is not None:
            parts["shortcut"] = "conv_shortcut"
        found.update({f"{place}.resnets.{i}.{name}": getattr(block, ours) for ours, name in parts.items()})
        if attention is not None:
            parts = {"norm": "group_norm", "qkv": "to_qkv", "out": "to_out.0"}
            found.update({f"{place}.attentions.{i}.{name}": getattr(attention, ours) for ours, name in parts.items()})

    for way, layers in (("down", net.down), ("up", net.up)):
        resolution = i = 0
        for layer in layers:
            if hasattr(layer, "block"):
                level(f"{way}_blocks.{resolution}", i, layer.block, layer.attention)  # type: ignore[arg-type]
                i += 1
            else:
                found[f"{way}_blocks.{resolution}.{way}samplers.0.conv"] = layer.conv  # type: ignore[assignment]
                resolution, i = resolution + 1, 0
    for i, layer in enumerate(net.middle):
        level("mid_block", i, layer.block, layer.attention)  # type: ignore[arg-type]
    return found


def mapped(net: UNet, other: Any) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Every parameter of ours and the one, or three, of theirs it holds; each of theirs is used once."""
    left = dict(other.named_parameters())
    found = []
    for name, module in pairs(net).items():
        names = [name.replace("to_qkv", f"to_{one}") for one in "qkv"] if "to_qkv" in name else [name]
        for kind in ("weight", "bias"):
            found.append((getattr(module, kind), [left.pop(f"{one}.{kind}") for one in names]))
    assert not left
    return found


def test_the_unet_is_diffusers() -> None:
    torch.manual_seed(0)
    other = theirs(block_out_channels=(32, 64, 64, 64)).double()
    net = UNet(32, 3, 3, 32, dropout=0.1).double().eval()
    for ours, parts in mapped(net, other):
        ours.data.copy_(torch.cat([part.data for part in parts]).view_as(ours))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for t, close in ((torch.tensor([0, 0]), 1e-12), (torch.tensor([3, 999]), 1e-4)):  # embeddings are float32
        torch.testing.assert_close(net(x, t), other(x, t).sample, rtol=close, atol=close)
    zero = torch.tensor([0, 0])
    g = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net(x, zero).backward(g)
    other(x, zero).sample.backward(g)
    for ours, parts in mapped(net, other):
        expected = torch.cat([part.grad for part in parts]).view_as(ours)  # type: ignore[misc]
        torch.testing.assert_close(ours.grad, expected, rtol=1e-10, atol=1e-10)


def test_the_unet_of_its_dialect_is_diffusers_by_its_defaults() -> None:
    torch.manual_seed(0)
    made: Any = UNet2DModel(
        sample_size=28,
        in_channels=5,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    other = made.double()
    net = UNet(28, 1, 1, 32, (1, 2, 2), 2, (14, 7), classes=10, dialect="diffusers").double().eval()
    net.initialise(0)
    assert net.classes is not None
    for ours, parts in mapped(net, other):
        theirs_first = torch.cat([part.data for part in parts]).view_as(ours)
        if ours.numel() > 1:  # as torch starts both
            assert ours.abs().max().item() == pytest.approx(theirs_first.abs().max().item(), rel=0.1)
        ours.data.copy_(theirs_first)
    x, y = torch.randn(3, 1, 28, 28, dtype=torch.float64), torch.tensor([7, 0, 7])
    told = torch.cat([x, net.classes(y)[:, :, None, None].expand(-1, -1, 28, 28)], 1)
    for t, close in ((torch.tensor([0, 0, 0]), 1e-12), (torch.tensor([3, 500, 998]), 1e-4)):
        torch.testing.assert_close(net(x, t, y), other(told, t).sample, rtol=close, atol=close)
    in_turn = net(x, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(net(x, torch.tensor([0, 0, 0])), in_turn)


def test_the_cosine_schedule_is_theirs() -> None:
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    d = Diffusion(schedule="cosine")
    torch.testing.assert_close(d.beta, scheduler.betas.double(), rtol=1e-4, atol=1e-7)
    x, eps = (torch.randn(4, 1, 2, 2, generator=generator(k)) for k in ("x", "eps"))
    t = torch.tensor([0, 300, 700, 998])
    torch.testing.assert_close(d.q_sample(x, t, eps), scheduler.add_noise(x, eps, t), rtol=1e-4, atol=1e-4)


def test_the_papers_net_has_as_many_parameters() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in net.parameters()) for net in (theirs(), UNet(32, 3, 3))]
    assert counts == [35_746_307, 35_746_307]


@pytest.mark.parametrize(("variance", "kind"), [("beta", "fixed_large"), ("posterior", "fixed_small")])
def test_a_step_backwards_is_theirs(variance: str, kind: str) -> None:
    scheduler: Any = DDPMScheduler(variance_type=kind, clip_sample=True)
    d = Diffusion(variance=variance)  # type: ignore[arg-type]
    x, out, noise = (torch.randn(2, 3, 4, 4, generator=generator(k)) for k in ("x", "out", "noise"))
    for t in (999, 500, 2, 0):
        numbers = generator("noise")
        expected = scheduler.step(out, t, x, generator=numbers)
        ours, x0 = SAMPLERS["ancestral"](Jump(d, t, t - 1, noise), x, out)
        torch.testing.assert_close(x0, expected.pred_original_sample, rtol=1e-3, atol=1e-4)  # their tables are float32
        torch.testing.assert_close(ours, expected.prev_sample, rtol=1e-3, atol=1e-4)


def test_a_ddim_step_is_theirs() -> None:
    scheduler: Any = DDIMScheduler(clip_sample=True, set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(100)
    d = Diffusion()
    x, out = (torch.randn(2, 3, 4, 4, generator=generator(k)) for k in ("x", "out"))
    for t in (990, 500, 0):
        expected = scheduler.step(out, t, x, use_clipped_model_output=True)
        ours, _ = SAMPLERS["ddim"](Jump(d, t, t - 10 if t else -1, x), x, out)
        torch.testing.assert_close(ours, expected.prev_sample, rtol=1e-4, atol=1e-5)
