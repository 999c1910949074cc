"""Identity of the diffusion model: counts, the U-Net and the process against plain re-expressions, exact targets."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.claims import load
from common.cli import launch
from common.errors import UserError
from common.extractors import RECIPES, Recipe
from common.random import generator
from common.records import Record, read
from papers.ddpm.audit import audit
from papers.ddpm.config import PRESETS, Config
from papers.ddpm.diffusion import Diffusion, discretised_gaussian, normal_kl
from papers.ddpm.model import Norm, UNet, Up, time_embedding
from papers.ddpm.pictures import rates
from papers.ddpm.sampling import SAMPLERS, Chain, find, sampler

DOUBLE = torch.float64


def small(channels_out: int = 3, dropout: float = 0.0) -> UNet:
    net = UNet(8, 3, channels_out, 8, (1, 2), 1, (4,), dropout, groups=4).to(DOUBLE)
    for name, p in net.named_parameters():  # away from the initial zeros
        p.data.normal_(0, 0.3, generator=generator("test", name))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pictures(n: int = 4, side: int = 8, seed: str = "x") -> Tensor:
    """Levels of 8-bit pictures in [-1, 1]."""
    levels = torch.randint(256, (n, 3, side, side), generator=generator("test", seed))
    return (levels / 127.5 - 1).to(DOUBLE)


# ---- The network


def test_parameters_are_those_printed() -> None:
    counts = audit(None)[0]
    assert counts["parameters/cifar10"] == 35_746_307  # also that of google/ddpm-cifar10-32
    assert counts["parameters/256"] == 113_673_219
    assert counts["parameters/256-large"] == 255_677_955


def plain(net: Any, x: Tensor, t: Tensor) -> Tensor:
    """The code's unet.py once more, in torch functions on the same weights, channels first and nothing in place."""

    def conv(m: Any, h: Tensor, **how: int) -> Tensor:
        return F.conv2d(h, m.weight.contiguous(), m.bias, **how)

    def swish(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h)

    def norm(m: Any, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        g = h.reshape(b, m.groups, -1)
        g = (g - g.mean(2, keepdim=True)) / (g.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
        return g.reshape(b, c, height, width) * m.weight[:, None, None] + m.bias[:, None, None]

    def by_place(m: Any, h: Tensor) -> Tensor:
        return torch.einsum("bchw,oc->bohw", h, m.weight) + m.bias[:, None, None]

    def block(m: Any, h: Tensor) -> Tensor:
        y = conv(m.conv1, swish(norm(m.norm1, h)), padding=1)
        y = y + (swish(temb) @ m.time.weight.T + m.time.bias)[:, :, None, None]
        y = conv(m.conv2, swish(norm(m.norm2, y)), padding=1)
        return y + (h if m.shortcut is None else by_place(m.shortcut, h))

    def attend(m: Any, h: Tensor) -> Tensor:
        c, side = h.shape[1], h.shape[2]
        q, k, v = by_place(m.qkv, norm(m.norm, h)).chunk(3, 1)
        w = torch.einsum("bchw,bcHW->bhwHW", q, k) * c**-0.5
        w = w.reshape(*w.shape[:3], -1).softmax(-1).view(-1, side, side, side, side)
        return h + by_place(m.out, torch.einsum("bhwHW,bcHW->bchw", w, v))

    def level(m: Any, h: Tensor) -> Tensor:
        h = block(m.block, h)
        return h if m.attention is None else attend(m.attention, h)

    half = net.base // 2
    rows = [[i * math.exp(-math.log(10_000) * j / (half - 1)) for j in range(half)] for i in t.tolist()]
    angles = torch.tensor(rows, dtype=x.dtype)
    first, second = net.time[0], net.time[2]
    temb = torch.cat([angles.sin(), angles.cos()], 1) @ first.weight.T + first.bias
    temb = swish(temb) @ second.weight.T + second.bias
    kept = [conv(net.stem, x, padding=1)]
    for m in net.down:
        h = kept[-1]
        kept.append(level(m, h) if hasattr(m, "block") else conv(m.conv, F.pad(h, (0, 1, 0, 1)), stride=2))
    h = kept[-1]
    for m in net.middle:
        h = level(m, h)
    for m in net.up:
        if isinstance(m, Up):
            h = conv(m.conv, h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
        else:
            h = level(m, torch.cat([h, kept.pop()], 1))
    assert not kept
    return conv(net.head, swish(norm(net.norm, h)), padding=1)


def test_the_unet_is_the_codes() -> None:
    net, x, t = small(), pictures(), torch.tensor([0, 1, 5, 7])
    ours, theirs = net(x, t), plain(net, x, t)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the embedding is float32, as in the code
    at_zero = torch.zeros_like(t)
    torch.testing.assert_close(net(x, at_zero), plain(net, x, at_zero), rtol=1e-10, atol=1e-10)
    g = torch.randn(ours.shape, generator=generator("g"), dtype=DOUBLE)
    gradients = torch.autograd.grad(net(x, at_zero), list(net.parameters()), g)
    for a, b in zip(gradients, torch.autograd.grad(plain(net, x, at_zero), list(net.parameters()), g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(net(x, at_zero), plain(net, x, at_zero), rtol=1e-10, atol=1e-10)


def test_normalisation_and_swish_in_one_have_the_right_gradient_with_dropout() -> None:
    norm = Norm(8, 2, 1e-6, dropout=0.3).to(DOUBLE)
    nn.init.normal_(norm.weight, generator=generator("w"))
    x = torch.randn(2, 8, 3, 3, dtype=DOUBLE, generator=generator("x")).requires_grad_()

    def seen(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(0)
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(seen, (x, norm.weight, norm.bias))
    torch.manual_seed(1)
    dropped = [(norm(x) == 0).double().mean().item() for _ in range(200)]
    assert sum(dropped) / len(dropped) == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(norm.eval()(x), F.silu(F.group_norm(x, 2, norm.weight, norm.bias, 1e-6)))


def test_time_embedding_ends_at_one_ten_thousandth() -> None:
    e = time_embedding(torch.tensor([0, 700]), 8)
    assert e[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    expected = [math.sin(700.0 * 10_000 ** (-i / 3)) for i in range(4)]
    assert e[1, :4].tolist() == pytest.approx(expected, abs=1e-4)


def test_an_untrained_net_says_nothing_and_repeats() -> None:
    net: Any = UNet(8, 3, 3, 32, (1, 2), 1, (4,))
    again = UNet(8, 3, 3, 32, (1, 2), 1, (4,))
    for one in (net, again):
        one.initialise(3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        assert net(pictures().float(), torch.arange(4)).abs().max() < 1e-3
    weight = net.down[0].block.conv1.weight
    assert weight.std().item() == pytest.approx((1 / (9 * 32)) ** 0.5, rel=0.05)  # variance 1 / mean fan
    qkv = net.middle[0].attention.qkv.weight
    assert qkv.std().item() == pytest.approx((1 / 64) ** 0.5, rel=0.05)


# ---- The process


def test_marginals_are_the_steps_composed() -> None:
    """q(x_t | x_0) by Eq. 4 has the moments of t single steps (Eq. 2)."""
    d = Diffusion(50)
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(d.beta.tolist()):
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        at = torch.tensor([t])
        one, zero = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
        assert d.q_sample(one, at, zero).item() == pytest.approx(mean)
        assert d.q_sample(zero, at, one).item() ** 2 == pytest.approx(variance)
    assert Diffusion().alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_the_posterior_is_bayes() -> None:
    """q(x_{t-1} | x_t, x_0) by quadrature over q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    d = Diffusion(10, 0.05, 0.3)
    x0, x_t = 0.4, -0.7
    grid = torch.linspace(-8, 8, 40_001, dtype=DOUBLE)
    for t in (1, 5, 9):
        before, beta = d.alpha_bar[t - 1], d.beta[t]
        log_q = -((x_t - (1 - beta).sqrt() * grid) ** 2) / (2 * beta)
        log_q -= (grid - before.sqrt() * x0) ** 2 / (2 * (1 - before))
        q = (log_q - log_q.max()).exp()
        q = q / q.sum()
        mean = (q * grid).sum()
        one, other = (torch.tensor([[v]], dtype=DOUBLE) for v in (x0, x_t))
        ours, log_variance = d.posterior(one, other, torch.tensor([t]))
        assert ours.item() == pytest.approx(mean.item(), abs=1e-9)
        assert log_variance.exp().item() == pytest.approx((q * (grid - mean) ** 2).sum().item(), rel=1e-6)


def test_what_is_predicted_is_a_matter_of_words() -> None:
    """The same x0-hat said as noise, as mean or as itself gives the same chain and the same bound."""
    x0, eps, guess = pictures(seed="a"), pictures(seed="e"), pictures(seed="g") * 0.5
    t = torch.tensor([0, 3, 500, 999])
    said = {}
    for name in ("eps", "x0", "mean"):
        d = Diffusion(predicts=name)
        x_t = d.q_sample(x0, t, eps)
        words = {"eps": d.eps_of(guess, x_t, t), "x0": guess, "mean": d.posterior(guess, x_t, t)[0]}
        said[name] = (*d.reverse(words[name], x_t, t, clip=True), *d.term(words[name], x0, x_t, t, clip=True))
    for name in ("x0", "mean"):
        for a, b in zip(said["eps"], said[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_simple_loss_is_the_bound_with_other_weights() -> None:
    """L_{t-1} = beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) |eps - out|^2 + constant (Eq. 12), sigma^2 = beta."""
    d, x0, eps = Diffusion(), pictures(1), pictures(1, seed="e")
    for step in (1, 10, 400, 999):
        t = torch.tensor([step])
        beta, alpha_bar = d.beta[step], d.alpha_bar[step]
        weight = beta / (2 * (1 - beta) * (1 - alpha_bar)) / math.log(2)
        x_t = d.q_sample(x0, t, eps)
        seen = []
        for seed in "pq":
            out = pictures(1, seed=seed)
            seen.append((d.term(out, x0, x_t, t, clip=False)[0], d.simple_loss(out, x0, x_t, eps, t)))
        (bits1, loss1), (bits2, loss2) = seen
        torch.testing.assert_close(bits1 - bits2, weight * (loss1 - loss2), rtol=1e-9, atol=1e-12)


def test_the_prior_term_in_closed_form() -> None:
    d, x0 = Diffusion(), pictures()
    mean, log_variance = d.alpha_bar[-1].sqrt() * x0, (1 - d.alpha_bar[-1]).log().expand_as(x0)
    zero = torch.zeros_like(x0)
    expected = normal_kl(mean, log_variance, zero, zero).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(d.prior(x0), expected, rtol=1e-6, atol=0)
    assert d.prior(torch.ones_like(x0)).max() < 3e-5  # so for any picture: about 1e-5 (Section 4)


def test_the_decoder_is_a_distribution_over_256_levels() -> None:
    levels = (torch.arange(256, dtype=DOUBLE) / 127.5 - 1)[:, None]
    for mean, sd in ((0.3, 0.01), (-0.999, 0.05), (0.0, 0.5), (1.2, 0.1)):
        log_p = discretised_gaussian(levels, torch.tensor(mean, dtype=DOUBLE), torch.tensor(math.log(sd), dtype=DOUBLE))
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
        normal = torch.distributions.Normal(mean, sd)
        upper, lower = normal.cdf(levels + 1 / 255), normal.cdf(levels - 1 / 255)
        upper[-1], lower[0] = 1.0, 0.0
        assert (log_p.exp() - (upper - lower)).abs().max() < 4e-4  # the tanh is good to a few parts in 10,000


# ---- Exact targets: Gaussian pictures, whose best denoiser is known


class Wiener(nn.Module):
    """The best noise prediction for pixels from N(0, sd^2)."""

    def __init__(self, d: Diffusion, sd: float) -> None:
        super().__init__()
        self.d, self.sd = d, sd

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = self.d.alpha_bar[t].to(x.dtype).view(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() / (alpha_bar * self.sd**2 + 1 - alpha_bar) * x


@pytest.mark.parametrize("steps", [200, 40])
def test_samples_of_gaussian_pictures_have_the_variance_of_the_linear_chain(steps: int) -> None:
    """A pixel's variance after each move is known; that of ancestral samples comes near the data's as T grows."""
    d, sd, known = Diffusion(200, 5e-4, 0.1, variance="posterior"), 0.2, {"ancestral": 1.0, "ddim": 1.0}
    chain = Chain(d, Wiener(d, sd), "ddim", steps)
    for t, s in zip(reversed(chain.times), [*reversed(chain.times[:-1]), -1], strict=True):
        here, there = d.alpha_bar[t].item(), d.alpha_bar[s].item() if s >= 0 else 1.0
        best = here**0.5 * sd**2 / (here * sd**2 + 1 - here)  # x0-hat = best * x_t
        ratio, rest = here / there, (1 - there) / (1 - here)
        mean = there**0.5 * (1 - ratio) / (1 - here) * best + ratio**0.5 * rest
        known["ancestral"] = mean**2 * known["ancestral"] + (1 - ratio) * rest
        known["ddim"] *= (there**0.5 * best + rest**0.5 * (1 - here**0.5 * best)) ** 2
    for name, variance in known.items():
        x = Chain(d, Wiener(d, sd), name, steps).sample((1024, 1, 4, 4), (name, steps), torch.device("cpu"))
        assert x.std().item() == pytest.approx(variance**0.5, rel=0.02)
        assert x.std().item() == pytest.approx(sd, rel=0.1 if steps == 200 else 0.4)


@pytest.mark.parametrize("steps", [5, 60])
def test_the_bound_of_gaussian_pictures_is_their_entropy(steps: int) -> None:
    """Each reverse step of a Gaussian is Gaussian: with its mean and variance the bound is tight for any T."""
    sd, n = 0.2, 20_000
    x0 = (
        torch.randn(n, 1, 1, 1, generator=generator("data"), dtype=DOUBLE) * sd * 127.5 - 0.5
    ).round() / 127.5 + 1 / 255
    normal = torch.distributions.Normal(0.0, sd)
    entropy = -(normal.cdf(x0 + 1 / 255) - normal.cdf(x0 - 1 / 255)).log2().mean().item()
    bounds = {}
    for variance in ("learned", "beta", "posterior"):
        d = Diffusion(steps, 0.001, 6 / steps if steps > 10 else 0.99, variance=variance)
        spread = d.alpha_bar * sd**2 + 1 - d.alpha_bar  # of x_t
        before = torch.cat([torch.tensor([sd**2], dtype=DOUBLE), spread[:-1]])
        bounds[variance] = d.prior(x0).mean().item()
        for step in range(steps):
            t = torch.full((n,), step)
            x_t = d.q_sample(x0, t, torch.randn(x0.shape, generator=generator("bound", step), dtype=DOUBLE))
            out = Wiener(d, sd)(x_t, t)
            if variance == "learned":
                out = torch.cat([out, (before * d.beta / spread)[step].log().expand_as(out)], 1)
            bounds[variance] += d.term(out, x0, x_t, t, clip=True)[0].mean().item()
    assert bounds["learned"] == pytest.approx(entropy, abs=0.02)
    assert min(bounds["beta"], bounds["posterior"]) > entropy + 0.05


# ---- Sampling


def test_all_steps_at_once_are_algorithm_2() -> None:
    """Written out with the noise predictor's own formula, x0-hat inside [-1, 1] so that nothing is clipped."""
    d = Diffusion(20, 0.01, 0.2)
    net = Wiener(d, 0.1)
    numbers = generator("chain")
    x = 0.1 * torch.randn((3, 1, 2, 2), generator=numbers)
    expected = x.clone()
    noise = generator("chain")
    torch.randn(x.shape, generator=noise)
    for step in range(19, -1, -1):
        t = torch.full((3,), step)
        beta, alpha_bar = d.beta[step].item(), d.alpha_bar[step].item()
        z = torch.randn(x.shape, generator=noise)
        expected = (expected - beta / (1 - alpha_bar) ** 0.5 * net(expected, t)) / (1 - beta) ** 0.5
        expected += beta**0.5 * z * (step > 0)
        expected = expected.float()
    guesses: list[Tensor] = []
    ours = Chain(d, net, "ancestral", 20).run(x, numbers, watch=lambda s, x, x0: guesses.append(x0))
    assert torch.cat(guesses).abs().max() < 1
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_ddim_is_deterministic_and_goes_back_to_where_its_noise_came_from() -> None:
    d = Diffusion()
    chain = Chain(d, Wiener(d, 0.2), "ddim", 10)
    x = torch.randn(2, 1, 4, 4, generator=generator("x"))
    assert torch.equal(chain.run(x, generator("a")), chain.run(x, generator("b")))
    assert chain.times[0] == 0
    assert chain.times[-1] == 999


def test_one_more_sampler_is_one_more_function() -> None:
    @sampler
    def still(jump, x, out):
        return x, x

    try:
        d = Diffusion(4)
        x = torch.randn(1, 1, 2, 2)
        assert torch.equal(Chain(d, Wiener(d, 1.0), "still", 2).run(x, generator("n")), x)
    finally:
        del SAMPLERS["still"]


def test_mistakes_about_samplers_are_one_line() -> None:
    d = Diffusion(10)
    for name, steps, said in (("ddmi", 5, "did you mean ddim"), ("ddim", 11, "not between 1 and the 10")):
        with pytest.raises(UserError, match=said):
            find(name, d, steps)
    with pytest.raises(UserError, match="learned variances know single steps"):
        find("ancestral", Diffusion(10, variance="learned"), 5)


def test_interpolation_ends_at_what_each_end_alone_becomes() -> None:
    d = Diffusion(50)
    chain = Chain(d, Wiener(d, 0.3), "ddim", 25)
    a, b = (0.3 * torch.randn(1, 4, 4, generator=generator(k)) for k in "ab")
    row = chain.between(a, b, 25, torch.linspace(0, 1, 5), generator("n"))
    torch.testing.assert_close(row[2], (row[0] + row[4]) / 2, rtol=1e-4, atol=1e-4)  # this denoiser is linear


# ---- Runs


def run(folder: Path, *arguments: str) -> Record:
    with pytest.raises(SystemExit) as stop:
        launch("ddpm", ["--preset", "smoke", "--device", "cpu", "--output-dir", str(folder), *arguments])
    assert stop.value.code == 0
    return read(next(folder.glob("records/*.json")))


def test_rates_add_up_to_the_bound(tmp_path: Path) -> None:
    record = run(tmp_path / "run")
    m = {name: value or 0.0 for name, value in record.metrics.items()}
    assert m["test_nll"] == pytest.approx(m["test_rate/8"] + m["test_distortion"])
    rows = [list(map(float, line.split(","))) for line in (tmp_path / "run/terms.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == list(range(1, 9))
    assert sum(row[1] for row in rows) + m["LT_test"] == pytest.approx(m["test_nll"], rel=1e-6)
    terms = torch.tensor([row[1] for row in rows])
    torch.testing.assert_close(rates(terms, m["LT_test"]), torch.tensor([row[2] for row in rows]), rtol=1e-5, atol=1e-6)
    assert rows[-1][2] == pytest.approx(m["LT_test"], rel=1e-6)
    left = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert left == {
        "samples-000003.png", "samples-000006.png", "denoising.png", "interpolation.png", "lossy.png", "progress.png",
        "samples.png",
    }  # fmt: skip


@pytest.mark.parametrize("row", ["mu-learned", "mu-fixed", "mu-mse", "eps-learned", "eps-fixed", "x0"])
def test_every_row_of_table_2_learns(row: str, tmp_path: Path) -> None:
    preset = PRESETS[f"small-{row}"]
    more = [f"--{k}={getattr(preset, k)}" for k in ("predicts", "objective", "variance")]
    few = ["--judge", "none", "--grids", "0", "--nll-images", "2", "--nll-train-images", "0", "--lr", "3e-3"]
    losses = run(tmp_path / "run", "--train-steps", "24", "--batch-size", "64", *more, *few).curves["loss"][1]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])  # type: ignore[arg-type]


def test_part_of_the_images_estimates_all_of_them(tmp_path: Path) -> None:
    few = ["--train-steps", "2", "--judge", "none", "--grids", "0", "--nll-train-images", "0"]
    every, part = (run(tmp_path / n, "--nll-images", n, *few).metrics for n in ("128", "16"))
    assert abs(every["test_nll"] - part["test_nll"]) < 4 * part["test_nll_se"]  # type: ignore[operator]
    assert every["test_nll_se"] == pytest.approx(part["test_nll_se"] / 8**0.5, rel=0.4)  # type: ignore[operator]


def test_claims_name_the_judges_and_sample_counts_that_their_presets_have() -> None:
    known = {}
    for data in load("ddpm").data:
        recipe = next((recipe for part, recipe in RECIPES.items() if part in data.name), Recipe())
        made_of = json.dumps([dataclasses.asdict(recipe), data.fingerprint])
        known[data.name] = f"{data.name.split('/')[-1]}_classifier_{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    seen = 0
    for claim in load("ddpm").claim:
        for side in claim.measured_by():
            for preset in side.cut_down if "_classifier_" in side.metric else []:
                config = PRESETS[preset]
                name = f"fid_{known[config.dataset]}_u8_n{config.samples}_test10000"
                assert side.metric.removeprefix("raw/") == name, claim.id
                seen += 1
    assert seen >= 20


def test_presets_are_the_papers() -> None:
    paper = PRESETS["paper"]
    assert (paper.train_steps, paper.batch_size, paper.lr, paper.ema_decay) == (800_000, 128, 2e-4, 0.9999)
    assert {p.train_steps for n, p in PRESETS.items() if n.startswith(("table2", "sec3.2"))} == {800_000}
    assert PRESETS["table2-eps-learned"] == Config(objective="L", variance="learned")
    assert PRESETS["table2-mu-mse"] == Config(predicts="mean")


def test_sizes_that_cannot_be_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = "--groups 3,--dataset synthetic/10x12x1,--multipliers 1 2 2 2,--dropout 1.5,--samples 3,--nll-images -1"
    for more in map(str.split, mistakes.split(",")):
        with pytest.raises(SystemExit) as stop:
            launch("ddpm", ["--preset", "smoke", "--output-dir", str(tmp_path / more[-1].replace("/", "-")), *more])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_courses_run_keeps_the_end_of_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = PRESETS["hf-course-mnist"]
    assert cfg.train_steps == 10 * 469  # 60,000 in batches of 128, the last one of 96
    assert dataclasses.replace(PRESETS["hf-course-mnist-1"], train_steps=4_690) == cfg
    monkeypatch.setattr("papers.ddpm.train.LATE", 2)
    tiny = (
        "--dataset synthetic/12x12x1 --train-images 40 --batch-size 16 --train-steps 7 --base 8 --groups 4 "
        "--attention 6 3 --diffusion-steps 8 --drawn-steps 7 --sample-steps 8 --device cpu"
    )
    with pytest.raises(SystemExit) as stop:
        launch("ddpm", ["--preset", "hf-course-mnist", *tiny.split(), "--output-dir", str(tmp_path / "run")])
    assert stop.value.code == 0
    record = read(next((tmp_path / "run").glob("records/*.json")))
    steps, losses = record.curves["loss"]
    assert steps == list(range(7))  # three updates an epoch, of 16, 16 and 8 pictures
    for epoch in (1, 2):
        mean = sum(losses[3 * epoch - 2 : 3 * epoch]) / 2  # type: ignore[arg-type]
        assert record.metrics[f"train_loss_last_2/epoch{epoch}"] == pytest.approx(mean, rel=1e-5)
    assert "train_loss_last_2/epoch3" not in record.metrics
