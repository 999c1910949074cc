"""Identity of StyleGAN: counts, plain forms of layers, growing, losses, mixing, path lengths, separability."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.cli import launch
from common.data import images
from common.errors import UserError
from common.judging import Seen
from common.random import generator
from common.records import read
from papers.stylegan import loss
from papers.stylegan import model as nets
from papers.stylegan.audit import audit
from papers.stylegan.config import PRESETS, Config
from papers.stylegan.data import DRAWN, FACTORS, Pictures, Reals, draw, halved, scaled
from papers.stylegan.evaluation import Sampler, conditional_entropy, log_odds, path_lengths, separability
from papers.stylegan.schedule import Schedule
from papers.stylegan.train import build, check

SMALL = replace(PRESETS["mnist-F"], base=64, most=8, latents=8, mapping_layers=2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module: Any, seed: int = 0) -> Any:
    """Every parameter normal, in float64."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.data = drawn(*p.shape, seed=seed + i)
    return module.double()


def generated(cfg: Config = SMALL, colours: int = 1) -> tuple[nets.Generator, nets.Discriminator]:
    g, d = build(cfg, colours)
    return filled(g, 100), filled(d, 200)


def plain_blur(x: Tensor) -> Tensor:
    """The filter [1, 2, 1] x [1, 2, 1] / 16 on every map, zeros beyond the border."""
    c = x.shape[1]
    one = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    return F.conv2d(x, (one[:, None] * one).expand(c, 1, 3, 3), padding=1, groups=c)


# ---- Networks


def test_counts() -> None:
    counts = audit(None)[0]
    assert counts["parameters/g/F"] == 26_219_627  # README of the official code
    assert counts["parameters/g/F"] == counts["parameters/g/E"]
    assert counts["parameters/g/F"] - counts["parameters/g/D"] == sum(
        2 * nets.width(i, 8192, 512) for i in range(9)
    )  # E adds a scale for each map of each layer
    assert counts["parameters/mapping"] == 8 * (512 * 512 + 512)
    assert (counts["layers/synthesis"], counts["styles/512-maps"]) == (18, 1024)


@pytest.mark.parametrize("blurred", [False, True])
def test_an_up_convolution_is_the_nearest_neighbour_and_a_convolution(blurred: bool) -> None:
    layer = filled(nets.Layer(nets.Conv(3, 5, way="up"), 5, 2, styles=False, noise=False, blurred=blurred))
    x, conv = drawn(2, 3, 6, 6), layer.conv
    weight = conv.weight.transpose(0, 1).flip(2, 3) * math.sqrt(2 / (3 * 9))
    want = F.conv2d(nets.doubled(x), weight, padding=1)
    want = F.leaky_relu((plain_blur(want) if blurred else want) + layer.bias[:, None, None], 0.2)
    want = want / (want.square().mean(1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(layer(x, None, None), want, rtol=1e-12, atol=1e-12)


def test_a_down_convolution_is_a_convolution_and_the_mean_of_four() -> None:
    conv, x = filled(nets.Conv(3, 5, way="down", bias=True)), drawn(2, 3, 8, 8)
    want = F.avg_pool2d(F.conv2d(x, conv.weight * math.sqrt(2 / 27), padding=1), 2) + conv.bias[:, None, None]
    torch.testing.assert_close(conv(x), want, rtol=1e-12, atol=1e-12)


def test_the_equalised_rate_scales_weights_and_biases_at_run_time() -> None:
    layer, x = filled(nets.Linear(7, 4, lr_mul=0.01)), drawn(3, 7)
    want = x @ (layer.weight * (0.01 * math.sqrt(2 / 7))).T + 0.01 * layer.bias
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-14)
    nets.initialise(model := nets.Mapping(64, 2, 0.01), 0, "test")
    first = next(model.layers.parameters())
    assert first.std().item() == pytest.approx(100, rel=0.05)  # effective: sqrt(2 / fan-in)


def test_a_layer_is_equation_1_after_noise_bias_and_leaky_relu() -> None:
    layer = filled(nets.Layer(None, 4, 6, styles=True, noise=True))
    x, w, noise = drawn(3, 4, 5, 5, seed=1), drawn(3, 6, seed=2), drawn(3, 1, 5, 5, seed=3)
    h = F.leaky_relu(x + layer.noise[:, None, None] * noise + layer.bias[:, None, None], 0.2)
    mean, sd = h.mean((2, 3), keepdim=True), (h.var((2, 3), keepdim=True, correction=0) + 1e-8).sqrt()
    y = (w @ layer.style.weight.T / math.sqrt(6) + layer.style.bias)[:, :, None, None]
    want = (y[:, :4] + 1) * (h - mean) / sd + y[:, 4:]
    torch.testing.assert_close(layer(x, w, noise), want, rtol=1e-12, atol=1e-12)


def test_deviations_are_of_groups_of_consecutive_pictures() -> None:
    x = drawn(8, 3, 2, 2)
    made = nets.minibatch_stddev(x, 4)
    for first in (0, 4):
        part = x[first : first + 4]
        deviation = (part.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(made[first : first + 4, 3], deviation.expand(4, 2, 2))
    torch.testing.assert_close(nets.minibatch_stddev(x[:2], 4)[:, :3], x[:2])  # a batch smaller than a group is one


def test_fading_goes_from_the_lower_resolution_to_the_higher() -> None:
    g, d = generated()
    w, noise = drawn(2, 8, 8), g.noise(2, 3, torch.Generator().manual_seed(0))
    noise = [each.double() for each in noise]
    low, high = g(w, noise[:4], 1), g(w, noise[:6], 2)
    assert (low.shape[2], high.shape[2]) == (8, 16)
    torch.testing.assert_close(g(w, noise[:6], 2, 1.0), nets.doubled(low))
    torch.testing.assert_close(g(w, noise[:6], 2, 0.25), 0.75 * high + 0.25 * nets.doubled(low))
    x = drawn(4, 1, 16, 16)
    torch.testing.assert_close(d(x, 2, 1.0), d(F.avg_pool2d(x, 2), 1))
    assert (d(x, 2, 0.5) - d(x, 2)).abs().min() > 1e-6


def test_configurations_differ_by_what_the_paper_adds() -> None:
    z = drawn(2, 8)
    for name, has in {"B": (0, 0, 0), "C": (1, 0, 0), "D": (1, 1, 0), "E": (1, 1, 1)}.items():
        g, _ = generated(replace(PRESETS[f"mnist-{name}"], base=64, most=8, latents=8))
        assert (g.layers[0].style is not None, g.constant is not None, g.layers[0].noise is not None) == has
        w = g.mapping(z)[:, None].expand(-1, 8, -1)
        noise = [n.double() for n in g.noise(2, 3, torch.Generator().manual_seed(0))]
        assert len(noise) == (8 if has[2] else 0)
        assert g(w, noise, 3).shape == (2, 1, 32, 32)
        other = g(w, [n.flip(0) for n in noise], 3) if noise else g(w.flip(0), noise, 3).flip(0)
        assert torch.allclose(other, g(w, noise, 3)) == (not has[2])  # noise moves what is generated
    assert (PRESETS["ffhq-F"].mixing, PRESETS["ffhq-E"].mixing, PRESETS["ffhq-A"].loss) == (0.9, 0.0, "wgan")


# ---- Styles


def test_mixing_takes_the_latent_of_the_last_crossover() -> None:
    ws = torch.arange(3.0)[:, None, None].expand(3, 2, 1)
    made = nets.mixed(ws, torch.tensor([[2, 4], [5, 1]]), 6)[:, :, 0]
    assert made.tolist() == [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2]]
    assert nets.mixed(ws[:1], torch.empty(2, 0), 6).unique().tolist() == [0]


def test_truncation_scales_the_distance_from_the_mean_in_the_first_layers() -> None:
    w, mean = drawn(3, 6, 4), drawn(4, seed=1)
    made = nets.truncated(w, mean, 0.7, 2)
    torch.testing.assert_close(made[:, :2] - mean, 0.7 * (w[:, :2] - mean))
    assert torch.equal(made[:, 2:], w[:, 2:])
    torch.testing.assert_close(nets.truncated(w, mean, 0.0, 6), mean.expand(3, 6, 4))


# ---- Losses


def test_the_penalties_of_a_linear_critic() -> None:
    weight, x, y = drawn(1, 2, 2), drawn(5, 1, 2, 2, seed=1).requires_grad_(), drawn(5, 1, 2, 2, seed=2)

    def critic(pictures: Tensor) -> Tensor:
        return (pictures * weight).sum((1, 2, 3))

    value, penalty = loss.logistic(critic(x), critic(y), x, 10.0)
    assert penalty.item() == pytest.approx(weight.square().sum().item())
    plain = -(critic(x).sigmoid().log() + (1 - critic(y).sigmoid()).log()).mean()  # Goodfellow et al., of D
    assert value.item() == pytest.approx((plain + 5 * penalty).item())

    between = torch.lerp(x, y, 0.3).detach().requires_grad_()
    value, penalty = loss.wgan(critic(x), critic(y), critic(between), between, 10.0, 0.001)
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2)
    want = critic(y).mean() - critic(x).mean() + 0.001 * critic(x).square().mean() + 10 * penalty
    assert value.item() == pytest.approx(want.item())


def test_the_penalty_itself_has_a_gradient() -> None:
    _, d = generated(replace(SMALL, group=2))
    x = drawn(2, 1, 8, 8).requires_grad_()
    loss.squared_gradient(d(x, 1), x).sum().backward()
    weight, eps, place = next(d.downs.parameters()), 1e-6, (0, 0, 1, 1)
    assert weight.grad is not None
    known = weight.grad[place].item()
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * eps
        sums.append(loss.squared_gradient(d(x, 1), x).sum().item())
        with torch.no_grad():
            weight[place] -= sign * eps
    assert (sums[0] - sums[1]) / (2 * eps) == pytest.approx(known, rel=1e-4)


# ---- Growing


def test_growing_as_the_code_does_it() -> None:
    """Start at 8x8, 600,000 real pictures of each phase, minibatches 256, 128, ... and rates of `train.py`."""
    schedule = Schedule.of(PRESETS["ffhq-F"])
    assert schedule(0) == (1, 0.0, 256, 0.001, 2)
    fading = schedule.at(900_000)
    assert (fading.stage, fading.old, fading.batch_size) == (2, 0.5, 128)
    assert (schedule.at(1_200_000).stage, schedule.at(1_200_000).old) == (2, 0.0)
    assert [schedule.at(1_200_000 * i).lr for i in range(8)] == [0.001] * 4 + [0.0015, 0.002, 0.003, 0.003]
    assert schedule.at(8_400_000) == (8, 0.0, 32, 0.003, 16)  # 1024x1024 has faded in
    assert 25_000_000 <= schedule.images < 25_000_000 + 4 * 32
    shown = 0
    for step in range(schedule.steps):
        if step % 5_000 == 0:
            assert schedule.first(step) == shown
        shown += schedule(step).batch_size
    assert shown == schedule.images
    assert schedule.step_at(schedule.first(4_000)) == 4_000


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"resolution": 48}, "power of two"),
        ({"start": 64}, "above resolution"),
        ({"total_images": 20_000}, "faded in"),
        ({"batch_sizes": (6,)}, "groups"),
        ({"separability_samples": 10}, "known factors"),
        ({"ema_images": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_trained(change: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        check(replace(PRESETS["mnist-F"], **change), 1)
    assert "\n" not in str(error.value)


# ---- Data


def test_drawn_pictures_have_their_factors() -> None:
    made = draw("generated/factors-32")
    assert len(made.train) + len(made.test) == DRAWN
    bits = torch.as_tensor(made.train_labels)[:, None] >> torch.arange(len(FACTORS)).flip(0) & 1
    assert (bits.float().mean(0) - 0.5).abs().max() < 0.02
    x = torch.as_tensor(made.train).float()
    warm = bits[:, FACTORS.index("warm")].bool()
    red = (x[..., 0] - x[..., 2]).amax((1, 2))  # a warm body is redder than blue, a cold one never
    assert red[warm].min() > red[~warm].max()
    right = bits[:, FACTORS.index("right")].bool()
    half = (x.amax(3) > 110).float().mean(1)  # where the body is, column by column
    side = half[:, 16:].sum(1) > half[:, :16].sum(1)
    assert (side == right).float().mean() > 0.95
    with pytest.raises(UserError, match="unknown drawn pictures"):
        draw("generated/faces-32")


def test_reals_show_every_picture_once_an_epoch_at_every_resolution() -> None:
    part = draw("generated/factors-32")
    few = images.Images(part.name, "few", part.train[:12], part.train_labels[:12], part.test, part.test_labels)
    pictures = Pictures(few, 32, torch.device("cpu"))
    reals = Reals(pictures, False, 0, torch.device("cpu"), lambda x: x)
    shown = torch.cat([reals(first, 4, 1, 0.0) for first in (0, 4, 8)])
    every = scaled(pictures.levels[8])
    assert sorted(map(hash, (bytes(p.numpy()) for p in shown))) == sorted(map(hash, (bytes(p.numpy()) for p in every)))
    assert torch.equal(pictures.levels[16], halved(torch.as_tensor(few.train)))
    sharp, faded = reals(0, 4, 2, 0.0), reals(0, 4, 2, 1.0)
    torch.testing.assert_close(F.avg_pool2d(faded, 2), F.avg_pool2d(sharp, 2))
    assert (faded[:, :, ::2, ::2] - faded[:, :, 1::2, 1::2]).abs().max() < 1e-6


# ---- Path length and separability


class Identity:
    """Pixels are the features."""

    name, size = "pixels", 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.flatten(1)


class Double(torch.nn.Module):
    """A mapping: w = 2 z."""

    layers = (0,)

    def forward(self, z: Tensor) -> Tensor:
        return 2 * z


class Line(torch.nn.Module):
    """A generator whose pictures are linear in w, and w = 2 z."""

    stages, latents, has_noise = 1, 16, False

    def __init__(self) -> None:
        super().__init__()
        self.mapping = Double()

    def noise(self, *_: Any) -> list[Tensor]:
        return []

    def forward(self, w: Tensor, noise: list[Tensor], stage: int) -> Tensor:
        return w[:, 0].view(-1, 1, 4, 4)


def test_path_lengths_of_a_linear_generator() -> None:
    """In w: |w2 - w1|², wherever measured; in z: (angle · |z|)², so with pictures of (w + 1) / 2 both are known."""
    sampler = Sampler(Line(), 0, 0, torch.device("cpu"))  # type: ignore[arg-type]
    found = path_lengths(sampler, Identity(), 4_000, 500)  # type: ignore[arg-type]
    w_full, w_end = found["path_length_w_full_pixels_n4000"], found["path_length_w_end_pixels_n4000"]
    assert w_full == pytest.approx(w_end, rel=0.05)
    assert w_full == pytest.approx(2 * 16, rel=0.05)  # E|w2 - w1|² / 4 with w = 2 z: 2 · 16
    z = found["path_length_z_full_pixels_n4000"]
    assert 0.5 < z / ((math.pi / 2) ** 2) < 1.5  # slerp runs on the unit sphere: |dw|/2 = |dz| = angle
    ratio = found["path_length_z_end_over_full_pixels_n4000"]
    assert ratio == pytest.approx(found["path_length_z_end_pixels_n4000"] / z)


def test_conditional_entropy_of_known_tables() -> None:
    truth = torch.tensor([0, 0, 1, 1] * 50)
    assert conditional_entropy(truth.bool(), truth) == pytest.approx(0.0, abs=1e-12)
    assert conditional_entropy(torch.tensor([False, True] * 100), truth) == pytest.approx(math.log(2))
    assert conditional_entropy(torch.zeros(200).bool(), truth) == pytest.approx(math.log(2))


def test_separability_is_one_on_a_boundary_and_two_an_attribute_without_one() -> None:
    x = torch.randn(2_000, 5, generator=generator(0, "separability"))
    known, unknown = x[:, :2], torch.randn(2_000, 2, generator=generator(1, "separability"))
    assert separability(x, known, 1_000) == pytest.approx(1.0, abs=0.15)
    assert separability(x, unknown, 1_000) == pytest.approx(4.0, abs=0.2)
    assert separability(x, torch.ones(2_000, 1), 1_000) == 1.0  # one class alone


def test_log_odds_sum_over_combinations() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]])  # combinations 00, 01, 10, 11
    want = [math.log(0.7 / 0.3), math.log(0.6 / 0.4)]
    assert log_odds(p, 2)[0].tolist() == pytest.approx(want, rel=1e-6)
    assert Seen._fields[1] == "probabilities"


def test_samples_are_functions_of_purpose_and_place() -> None:
    g, _ = build(SMALL, 1)
    nets.initialise(g, 0, "generator")
    sampler = Sampler(g, 3, 2, torch.device("cpu"))
    one, again = sampler("fid", 2, slice(0, 4)), sampler("fid", 2, slice(0, 4))
    assert one.shape == (4, 1, 28, 28)  # MNIST's frame is cut off
    assert torch.equal(one, again)
    assert not torch.equal(one, sampler("fid", 2, slice(4, 8)))
    assert not torch.equal(one, sampler("other", 2, slice(0, 4)))


# ---- The whole


def test_smoke_leaves_pictures_and_metrics(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("stylegan", ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run")])
    assert stop.value.code == 0
    (record,) = (read(path) for path in (tmp_path / "run/records").glob("*.json"))
    for name in ("grid", "mixing", "progress"):
        assert (tmp_path / f"run/{name}.png").stat().st_size > 100
    fid = {name.partition("fid_")[0]: value or math.nan for name, value in record.metrics.items() if "fid_" in name}
    assert fid.keys() == {"", "mixed2_", "lowest_"}
    assert fid["lowest_"] <= fid[""]
    steps, values = ([v for v in part if v is not None] for part in record.curves["fid"])
    assert steps == sorted(set(steps))
    assert min(values) == pytest.approx(fid["lowest_"], rel=1e-5)  # curves are rounded
