"""Identity of the variational autoencoders: counts, gradients against autograd, densities, estimators, seeds."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from common.random import generator
from common.threads import on_threads
from papers.vae.audit import audit
from papers.vae.config import PRESETS, Config
from papers.vae.data import Source, binary
from papers.vae.hmc import Hmc, kernel_density, marginal_likelihood
from papers.vae.model import VAE, draw, log_product
from papers.vae.sample import contact_sheet, latent_grid
from papers.vae.train import IwaeAdam, log_points, make_optimizer, schedule

PIXELS = 12


def small(
    layers: int = 1, seeds: tuple[int, ...] = (0, 1), decoder: str = "bernoulli", log_variance: bool = False
) -> VAE:
    hidden, latents = ([[9, 8]], [3]) if layers == 1 else ([[9, 8], [7, 6]], [5, 3])
    model = VAE(seeds, PIXELS, hidden, latents, decoder, log_variance)  # type: ignore[arg-type]
    model.initialise("normal", 0.4)
    return model


def batch(model: VAE, b: int = 4, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = [generator(seed, "test batch") for seed in model.seeds]
    x = torch.stack([torch.rand(b, PIXELS, generator=g) for g in numbers])
    return (x < 0.4).float(), draw(numbers, (b, k, sum(model.latents)), "cpu")


def leaves(model: VAE) -> list[torch.Tensor]:
    """Make every weight and bias a leaf of autograd, and return them in the order of theta."""
    found = []
    for net in model.networks:
        net.weights = [w.clone().requires_grad_() for w in net.weights]
        net.biases = [b.clone().requires_grad_() for b in net.biases]
        found += [t for pair in zip(net.weights, net.biases, strict=True) for t in pair]
    return found


def by_autograd(model: VAE, objective: Callable[[], torch.Tensor]) -> torch.Tensor:
    parameters = leaves(model)
    gradients = torch.autograd.grad(objective(), parameters, allow_unused=True, materialize_grads=True)
    model.bind()
    return torch.cat([g.flatten() for g in gradients])


def test_parameter_counts() -> None:
    counts = audit(None)[0]
    expected = {3: 790_290, 5: 793_294, 10: 800_804, 20: 815_824, 200: 1_086_184}
    assert {n: counts[f"parameters/aevb-mnist-nz{n}"] for n in expected} == expected
    assert (counts["parameters/iwae-1layer"], counts["parameters/iwae-2layer"]) == (425_284, 521_084)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("objective", ["vae", "iwae"])
@pytest.mark.parametrize("k", [1, 5])
def test_sampled_gradient_is_autograds(layers: int, objective: str, k: int) -> None:
    model = small(layers, log_variance=k == 5)
    x, noise = batch(model, k=k)

    def value() -> torch.Tensor:
        log_w = model.log_weights(x, noise)
        return (model.bound(log_w) if objective == "iwae" else log_w.mean(-1)).sum()

    expected = by_autograd(model, value)
    with torch.no_grad():
        model.ascend(x, noise, objective)  # type: ignore[arg-type]
    torch.testing.assert_close(model.gradient, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_elbo_gradient_is_autograds(decoder: str, k: int, beta: float) -> None:
    model = small(decoder=decoder, log_variance=True)
    x, noise = batch(model, k=k)
    expected = by_autograd(model, lambda: model.elbo(x, noise, beta).sum())
    with torch.no_grad():
        model.ascend(x, noise, "elbo", beta)
    torch.testing.assert_close(model.gradient, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_wake_sleep_gradient_is_autograds(decoder: str) -> None:
    model = small(decoder=decoder, log_variance=True)
    x, noise = batch(model, k=1)
    dream_z, dream_noise = torch.randn(2, 4, 3), torch.rand(2, 4, PIXELS)
    with torch.no_grad():
        z = model.recognise(x, noise)[0][0]
        dream_x = model.p[0].sample(model.p[0](dream_z), dream_noise)

    def value() -> torch.Tensor:
        wake = model.p[0].log_prob(model.p[0](z), x)
        return (wake + model.q[0].log_prob(model.q[0](dream_x), dream_z)).sum()

    expected = by_autograd(model, value)
    with torch.no_grad():
        model.ascend_wake_sleep(x, noise, dream_z, dream_noise)
    torch.testing.assert_close(model.gradient, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_log_joint_and_its_derivative(decoder: str) -> None:
    model = small(decoder=decoder)
    x, _ = batch(model)
    z = torch.randn(2, 4, 3, requires_grad=True)
    p = model.p[0]
    expected = p.log_prob(p(z), x) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    with torch.no_grad():
        value, gradient = model.log_joint(x, z.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, slope, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_log_weights_are_those_of_torch_distributions(layers: int) -> None:
    model = small(layers)
    x, noise = batch(model)
    s, b, k, _ = noise.shape
    h = x[:, :, None].expand(s, b, k, -1).reshape(s, b * k, -1)
    log_w = torch.zeros(s, b * k)
    z = h
    for i, eps in enumerate(model.split_noise(noise)):
        mu, log_sigma = model.q[i](z).chunk(2, -1)
        q = Normal(mu, log_sigma.exp())
        below, z = z, mu + log_sigma.exp() * eps
        log_w -= q.log_prob(z).sum(-1)
        out = model.p[i](z)
        if i == 0:
            log_w += Bernoulli(logits=out).log_prob(h).sum(-1)
        else:
            mean, log_scale = out.chunk(2, -1)
            log_w += Normal(mean, log_scale.exp()).log_prob(below).sum(-1)
    log_w += Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(model.log_weights(x, noise), log_w.view(s, b, k), rtol=1e-5, atol=1e-4)


def test_fast_bernoulli_is_the_plain_one_at_any_logit() -> None:
    logits = torch.tensor([-200.0, -30, -5, -0.1, 0, 0.1, 5, 30, 200]).repeat(16)
    for x in (torch.zeros_like(logits), torch.ones_like(logits), torch.full_like(logits, 0.3)):
        fast = small().p[0].log_prob(logits, x)
        plain = small().p[0].log_prob(logits.clone().requires_grad_(), x)
        torch.testing.assert_close(fast, plain.detach(), rtol=1e-6, atol=1e-3)
    factors = torch.rand(3, 48) / 2 + 0.5
    torch.testing.assert_close(log_product(factors.clone()), factors.log().sum(-1))


def test_kl_in_closed_form_is_torchs_and_the_monte_carlo_one() -> None:
    mu, log_sigma = torch.tensor([0.7, -1.2]), torch.tensor([-0.5, 0.3])
    q, p = Normal(mu, log_sigma.exp()), Normal(torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(VAE.kl(mu, log_sigma), kl_divergence(q, p).sum())
    torch.manual_seed(0)
    z = q.sample((200_000,))
    assert VAE.kl(mu, log_sigma).item() == pytest.approx(
        (q.log_prob(z) - p.log_prob(z)).sum(-1).mean().item(), abs=0.02
    )


@torch.no_grad()
def test_bound_rises_with_k_and_k1_is_the_vae() -> None:
    model = small(2)
    x, noise = batch(model, b=2, k=4096)
    log_w = model.log_weights(x, noise)
    levels = [model.bound(log_w.view(2, 2, -1, k)).mean(-1) for k in (1, 4, 64, 4096)]
    assert all(bool((low <= high).all()) for low, high in pairwise(levels))  # Theorem 1: exact for means over groups
    one = noise[:, :, :1].contiguous()
    model.ascend(x, one, "iwae")
    iwae = model.gradient.clone()
    model.ascend(x, one, "vae")
    assert torch.equal(iwae, model.gradient)


def linear_gaussian() -> tuple[VAE, torch.Tensor, torch.Tensor]:
    """Probabilistic PCA as a VAE without hidden layers: images, and log p(x) in closed form."""
    model = VAE([0], 6, [[]], [2], "gaussian")
    torch.manual_seed(1)
    p, q = model.p[0], model.q[0]
    p.squash = False  # type: ignore[union-attr]
    loading, noise_sd = torch.randn(2, 6), 0.6
    p.weights[0][0, :, :6] = loading
    p.biases[0][0, 0] = torch.cat((torch.randn(6), torch.full((6,), math.log(noise_sd))))
    mean = p.biases[0][0, 0, :6]
    covariance = loading.T @ loading + noise_sd**2 * torch.eye(6)
    truth = torch.distributions.MultivariateNormal(mean, covariance)
    x = truth.sample((5,))
    posterior = torch.linalg.inv(torch.eye(2) + loading @ loading.T / noise_sd**2)
    q.weights[0][0, :, :2] = loading.T / noise_sd**2 @ posterior
    q.biases[0][0, 0, :2] = -mean @ q.weights[0][0, :, :2]
    q.biases[0][0, 0, 2:] = 0.5 * torch.log(posterior.diagonal()) + 0.2  # a little too wide, and no correlation
    return model, x[None], truth.log_prob(x)[None]


@torch.no_grad()
def test_likelihood_estimators_find_the_closed_form() -> None:
    model, x, truth = linear_gaussian()
    numbers = [generator(0, "estimators")]
    estimate = model.log_likelihood(x, 20_000, numbers, chunk=3_000)
    torch.testing.assert_close(estimate, truth, atol=0.03, rtol=0)
    by_hmc = marginal_likelihood(model, x, 400, 4, 200, numbers)
    torch.testing.assert_close(by_hmc, truth, atol=0.25, rtol=0)


@torch.no_grad()
def test_hmc_accepts_nine_in_ten_and_leaves_the_posterior() -> None:
    chain, numbers = Hmc(4), [generator(0, "chain")]
    z, size = torch.zeros(1, 300, 2), torch.full((1, 300), 0.05)

    def log_joint(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # N(1, 0.5^2)
        return -2 * (z - 1).square().sum(-1), -4 * (z - 1)

    for _ in range(150):
        chain.step(log_joint, z, size, numbers, tune=True)
    states, moved = [], []
    for _ in range(100):
        before = z.clone()
        chain.step(log_joint, z, size, numbers, tune=False)
        moved.append((before != z).any(-1).float().mean())
        states.append(z.clone())
    drawn = torch.cat(states)
    assert torch.stack(moved).mean().item() == pytest.approx(0.9, abs=0.05)
    assert drawn.mean().item() == pytest.approx(1, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)


def test_kernel_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    fitted = torch.randn(40, 2) * torch.tensor([1.0, 0.3])
    axis = torch.linspace(-6, 6, 241)
    mass = kernel_density(fitted, torch.cartesian_prod(axis, axis)).exp().sum() * 0.05**2
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_adam_of_the_official_code() -> None:
    torch.manual_seed(0)
    theta = torch.nn.Parameter(torch.randn(7))
    expected, m, v = theta.detach().double().numpy().copy(), np.zeros(7), np.ones(7)
    optimizer = IwaeAdam(theta, 1e-3, (0.99, 0.999), 1e-4, maximize=True, fused=True)
    for t in range(1, 30):
        g = torch.randn(7)
        theta.grad = g.clone()
        optimizer.step()
        m, v = 0.99 * m + 0.01 * g.numpy(), 0.999 * v + 0.001 * g.numpy() ** 2
        expected += 1e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.99**t) * m / (np.sqrt(v) + 1e-4)
    np.testing.assert_allclose(theta.detach().numpy(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_the_prior_pulls_parameters_to_zero_though_we_ascend(optimizer: Literal["adagrad", "adam"]) -> None:
    model = small()
    before = model.theta.detach().abs()
    make_optimizer(Config(optimizer=optimizer, lr=1e-4), model).step()
    assert bool((model.theta.detach().abs() < before).all())


def test_schedule_is_the_codes() -> None:
    rate = schedule(Config(lr_stages=True), per_epoch=10)
    got = [rate(10 * (3**i - 1) // 2) for i in range(8)]
    assert got == pytest.approx([1, 0.72, 0.52, 0.37, 0.27, 0.19, 0.14, 0.1])
    assert rate(10 * 3280 - 1) == pytest.approx(0.1)
    assert [rate(9), rate(10)] == pytest.approx([1, 0.72])
    assert PRESETS["iwae-table1-mnist-1layer-vae-k1"].train_steps == sum(3**i for i in range(8)) * 59_600 // 20
    assert (min(log_points(1000)), max(log_points(1000))) == (0, 999)


@pytest.mark.parametrize("objective", ["vae", "iwae", "elbo", "wake-sleep"])
@torch.no_grad()
def test_a_seed_alone_is_the_seed_in_company(objective: str) -> None:
    """Bit for bit, at the sizes that are trained."""

    def trained(seeds: list[int]) -> torch.Tensor:
        model = VAE(seeds, 784, [[200, 200]], [50])
        model.initialise("glorot")
        optimizer = IwaeAdam(model.theta, 1e-3, (0.99, 0.999), 1e-4, maximize=True, fused=True)
        source = Source((torch.arange(60 * 784) % 256).to(torch.uint8).view(60, 784), 20, seeds, "redrawn", True)
        for step in range(4):
            numbers = [generator(seed, step) for seed in seeds]
            noise = draw(numbers, (20, 3 if objective == "iwae" else 1, 50), "cpu")
            if objective == "wake-sleep":
                model.ascend_wake_sleep(source(step), noise, noise[:, :, 0], source(step + 1))
            else:
                model.ascend(source(step), noise, objective)  # type: ignore[arg-type]
            optimizer.step()
        return torch.cat([net.weights[0][seeds.index(7)].flatten() for net in model.networks])

    with on_threads(1):
        assert torch.equal(trained([7]), trained([3, 7, 5]))


def test_binary_draws_have_the_grey_level_as_probability() -> None:
    pixels = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8).expand(200_000, 6)
    drawn = binary(pixels, generator("bits")).float().mean(0)
    torch.testing.assert_close(drawn, pixels[0] / 255, atol=4e-3, rtol=0)
    assert (drawn[0], drawn[-1]) == (0, 1)


def test_source_is_a_pure_function_of_seed_and_step() -> None:
    pixels = torch.randint(0, 256, (100, 9), dtype=torch.uint8)
    forward = [Source(pixels, 10, [1, 2], "redrawn", True)(step) for step in range(120)]
    one = Source(pixels, 10, [2], "redrawn", True)
    for step in (119, 3, 60, 50, 49):
        assert torch.equal(one(step)[0], forward[step][1])


@torch.no_grad()
def test_removing_a_unit_that_does_nothing_changes_nothing() -> None:
    model = small(2)
    dead = [torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)]
    dead[0][:, 1] = dead[1][0, 2] = True
    model.remove(dead)
    x, noise = batch(model)
    before = model.log_weights(x, noise)
    model.remove(dead)
    assert torch.equal(before, model.log_weights(x, noise))
    activity = model.activity(x, noise)
    assert (activity[0][:, 1].max(), activity[1][0, 2]) == (0, 0)
    assert activity[0][:, 0].min() > 0


def test_manifold_and_contact_sheet() -> None:
    grid = latent_grid(4)
    assert grid.shape == (16, 2)
    torch.testing.assert_close(Normal(0.0, 1.0).cdf(grid[:4, 1]), (torch.arange(4) + 0.5) / 4)
    sheet = contact_sheet(torch.arange(4).float().repeat_interleave(6).view(4, 6) / 4, (2, 3), 2)
    assert sheet.shape == (4, 6)
    assert [int(sheet[0, 0]), int(sheet[0, 3]), int(sheet[3, 5])] == [0, 64, 191]


def test_frey_faces_and_mnist_are_read_as_declared(papers_data: Path) -> None:
    from common.claims import load as claims
    from papers.vae.data import load

    declared = {d.name: d.fingerprint for d in claims("vae").data}
    for name, sizes, shape in (
        ("local/frey-faces", (1600, 365), (28, 20)),
        ("ylecun/mnist", (60_000, 10_000), (28, 28)),
    ):
        pictures = load(name, papers_data)
        assert (len(pictures.train), len(pictures.test), tuple(pictures.shape)) == (*sizes, shape)
        assert pictures.fingerprint == declared[name]
