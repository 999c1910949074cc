"""Auto-Encoding Variational Bayes (AEVB) and the importance weighted autoencoder (IWAE), many seeds at once.

Papers: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv 1312.6114 (v11): the model, its
bound, wake-sleep and Monte Carlo EM beside it (Sections 3 and 5, Appendices B to E).
Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, arXiv 1509.00519: the k-sample
bound, one or two stochastic layers (Section 3); official code github.com/yburda/iwae at 78a6075.

Every tensor has a leading axis for the seeds, which share nothing but the instruction stream. These nets are so small
that autograd's bookkeeping and fresh gradients cost as much as the arithmetic, so the gradients of the bounds are
written out by hand; `log_weights` is their definition, and in the tests autograd's answer is their oracle.

Glossary (code: paper, shape)
    s, b, k, r      seeds, images, samples per image, rows = b * k
    x               observed image, (s, b, d)
    z, h1, h2       latent variables; z[i] of stochastic layer i, (s, r, units); z[0] is x
    eps             standard normal noise, z = mu + sigma * eps (AEVB Section 2.4)
    q[i], p[i]      recognition q(z[i+1] | z[i]) and generative p(z[i] | z[i+1])
    log w           log p(x, z) - log q(z | x), the log importance weight (IWAE Eq. 8), (s, b, k)
    a               weight of a row's gradient: 1/k (VAE), normalised w (IWAE Eq. 14), (s, r, 1)
    g_...           derivative of the objective, to be maximised, with respect to ...
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.random import generator

LOG_2PI = math.log(2 * math.pi)
tanh_backward, sigmoid_backward = torch.ops.aten.tanh_backward, torch.ops.aten.sigmoid_backward


def tanh(h: Tensor) -> Tensor:
    """In place where no autograd looks on; on a CPU through the sigmoid, which takes a quarter of the time."""
    if h.requires_grad:
        return h.tanh()
    return h.mul_(2).sigmoid_().mul_(2).sub_(1) if h.device.type == "cpu" else h.tanh_()


def log_product(factors: Tensor) -> Tensor:
    """Sum of logarithms over the last axis of factors in [0.5, 1], destroyed; 16 of them are multiplied first."""
    for _ in range(4):
        n = factors.shape[-1]
        if n % 2:
            break
        factors = factors[..., : n // 2].mul_(factors[..., n // 2 :])
    return factors.log().sum(-1)


class Network:
    """Tanh layers and a linear one; weights and gradients are views into the model's two flat vectors."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.weights: list[Tensor] = []  # (s, in, out)
        self.biases: list[Tensor] = []  # (s, 1, out)
        self.weight_grads: list[Tensor] = []
        self.bias_grads: list[Tensor] = []
        self.inputs: list[Tensor] = []  # of each layer, kept by forward for backward

    def __call__(self, h: Tensor) -> Tensor:
        """(s, r, in) -> (s, r, out)."""
        last = len(self.weights) - 1
        self.inputs = []
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            self.inputs.append(h)
            h = torch.baddbmm(bias, h, weight)
            if i < last:
                h = tanh(h)
        return h

    def backward(self, g: Tensor, weights: bool = True, inputs: bool = True) -> Tensor:
        """From the output's derivative to those of weights and biases (stored) and of the input (returned)."""
        for i in reversed(range(len(self.weights))):
            if i < len(self.weights) - 1:
                g = tanh_backward(g, self.inputs[i + 1])
            if weights:
                torch.bmm(self.inputs[i].mT, g, out=self.weight_grads[i])
                torch.sum(g, 1, keepdim=True, out=self.bias_grads[i])
            if i or inputs:
                g = torch.bmm(g, self.weights[i].mT)
        return g


class Bernoulli(Network):
    """p(x | z) = prod Bernoulli(x; sigmoid(logits)) (AEVB Appendix C.1). x in [0, 1]: grey levels count as averages."""

    @staticmethod
    def log_prob(logits: Tensor, x: Tensor) -> Tensor:
        """log p(x | z), (..., d) -> (...)."""
        if logits.requires_grad:
            return (x * logits).sum(-1) - F.softplus(logits).sum(-1)
        # softplus(l) = max(l, 0) - log sigmoid(|l|), the logarithm taken of products: half the time of the line above.
        agreed = (x * logits).sum(-1) if x.shape == logits.shape else torch.matmul(logits, x.mT)[..., 0]
        positive = 0.5 * (logits.sum(-1) + torch.linalg.vector_norm(logits, 1, -1))
        return agreed - positive + log_product(logits.abs().sigmoid_())

    @staticmethod
    def gradient(logits: Tensor, x: Tensor) -> Tensor:
        """d log p / d logits."""
        return torch.sigmoid(logits).neg_().add_(x)

    @staticmethod
    def mean(logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    @staticmethod
    def sample(logits: Tensor, noise: Tensor) -> Tensor:
        """Draw with uniform noise."""
        return (noise < torch.sigmoid(logits)).to(logits.dtype)


class Gaussian(Network):
    """Diagonal Gaussian (AEVB Appendix C.2). Heads for mean and scale are one product, halved afterwards.

    The scale's head is log sigma^2 (AEVB) or log sigma (IWAE); the mean is squashed for pictures in (0, 1) (AEVB
    Section 5).
    """

    def __init__(self, sizes: Sequence[int], log_variance: bool, squash: bool = False) -> None:
        super().__init__([*sizes[:-1], 2 * sizes[-1]])
        self.scale, self.squash = 0.5 if log_variance else 1.0, squash

    def split(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Network output -> mean and log sigma."""
        mu, log_sigma = out.chunk(2, -1)
        return torch.sigmoid(mu) if self.squash else mu, log_sigma * self.scale if self.scale != 1 else log_sigma

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        """log N(x; mu, sigma^2), (..., d) -> (...)."""
        mu, log_sigma = self.split(out)
        u = (x - mu) * torch.exp(-log_sigma)
        return -(0.5 * u.square() + log_sigma).sum(-1) - 0.5 * LOG_2PI * mu.shape[-1]

    def gradient(self, out: Tensor, x: Tensor) -> Tensor:
        """d log N / d network output."""
        mu, log_sigma = self.split(out)
        u = (x - mu) * torch.exp(-log_sigma)
        return self.join(u * torch.exp(-log_sigma), u * u - 1, mu)

    def join(self, g_mu: Tensor, g_log_sigma: Tensor, mu: Tensor) -> Tensor:
        """Derivatives of mean and log sigma -> derivative of the network's output."""
        if self.squash:
            g_mu = sigmoid_backward(g_mu, mu)
        return torch.cat((g_mu, g_log_sigma * self.scale if self.scale != 1 else g_log_sigma), -1)

    def mean(self, out: Tensor) -> Tensor:
        return self.split(out)[0]

    def sample(self, out: Tensor, noise: Tensor) -> Tensor:
        """Draw with standard normal noise."""
        mu, log_sigma = self.split(out)
        return torch.addcmul(mu, torch.exp(log_sigma), noise)


class VAE(nn.Module):
    """Recognition and generative networks of all seeds; `theta` holds every parameter, `gradient` its derivative."""

    def __init__(
        self,
        seeds: Sequence[int],
        pixels: int,
        hidden: Sequence[Sequence[int]],
        latents: Sequence[int],
        decoder: Literal["bernoulli", "gaussian"] = "bernoulli",
        log_variance: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """hidden[i] are the tanh layers between z[i] and z[i+1]; latents[i] the units of z[i+1]."""
        super().__init__()
        self.seeds, self.pixels, self.latents = list(seeds), pixels, list(latents)
        units = [pixels, *latents]
        self.q = [Gaussian([units[i], *hidden[i], units[i + 1]], log_variance) for i in range(len(latents))]
        self.p: list[Gaussian | Bernoulli] = []
        for i in range(len(latents)):
            sizes = [units[i + 1], *reversed(hidden[i]), units[i]]
            if i == 0 and decoder == "bernoulli":
                self.p.append(Bernoulli(sizes))
            else:
                self.p.append(Gaussian(sizes, log_variance, squash=i == 0))
        shapes = [(n_in, n_out) for net in self.networks for n_in, n_out in zip(net.sizes, net.sizes[1:], strict=False)]
        n = len(self.seeds) * sum((n_in + 1) * n_out for n_in, n_out in shapes)
        self.theta = nn.Parameter(torch.zeros(n, device=device))
        self.gradient = torch.zeros(n, device=device)
        self.theta.grad = self.gradient  # the optimiser reads it, the networks write it; it is never replaced
        self.bind()

    @property
    def networks(self) -> list[Network]:
        return [*self.q, *self.p]

    def bind(self) -> None:
        """Cut the flat vectors into the networks' weights and biases."""
        theta, grad, s, at = self.theta.data, self.gradient, len(self.seeds), 0

        def cut(flat: Tensor, *shape: int) -> Tensor:
            return flat[at : at + math.prod(shape)].view(shape)

        for net in self.networks:
            net.weights, net.biases, net.weight_grads, net.bias_grads = [], [], [], []
            for n_in, n_out in zip(net.sizes, net.sizes[1:], strict=False):
                net.weights.append(cut(theta, s, n_in, n_out))
                net.weight_grads.append(cut(grad, s, n_in, n_out))
                at += s * n_in * n_out
                net.biases.append(cut(theta, s, 1, n_out))
                net.bias_grads.append(cut(grad, s, 1, n_out))
                at += s * n_out

    @torch.no_grad()
    def initialise(
        self, how: Literal["normal", "glorot", "torch"], sd: float = 0.01, mean_image: Tensor | None = None
    ) -> None:
        """Draw each seed's parameters.

        Args:
            how: "normal": N(0, sd^2) everywhere (AEVB Section 5). "glorot": uniform weights, zero biases, as in the
                IWAE code, where every layer starts from the same random numbers (seed 123, nnet.py), so that layers
                of one shape, and the heads of mean and log sigma, begin alike. "torch": torch.nn.Linear's own.
            mean_image: the last biases become its logits, clipped to [0.001, 0.999] (IWAE code, datasets.py).
        """
        for i, seed in enumerate(self.seeds):
            numbers = generator(seed, "initial weights")
            for net in self.networks:
                for weight, bias in zip(net.weights, net.biases, strict=True):
                    n_in, n_out = weight.shape[1:]
                    if how == "normal":
                        weight[i] = torch.randn(n_in, n_out, generator=numbers) * sd
                        bias[i] = torch.randn(1, n_out, generator=numbers) * sd
                    elif how == "torch":
                        weight[i] = (torch.rand(n_in, n_out, generator=numbers) * 2 - 1) / math.sqrt(n_in)
                        bias[i] = (torch.rand(1, n_out, generator=numbers) * 2 - 1) / math.sqrt(n_in)
                    else:
                        numbers = generator(seed, "initial weights")
                        heads = 2 if isinstance(net, Gaussian) and weight is net.weights[-1] else 1
                        bound = math.sqrt(6 / (n_in + n_out // heads))
                        one = (torch.rand(n_in, n_out // heads, generator=numbers) * 2 - 1) * bound
                        weight[i] = one.repeat(1, heads)
                        bias[i] = 0
        if mean_image is not None:
            self.p[0].biases[-1].copy_(torch.logit(mean_image, eps=0.001).expand_as(self.p[0].biases[-1]))

    # ---- the objectives, as the papers write them

    def split_noise(self, noise: Tensor) -> list[Tensor]:
        """(s, b, k, all latents) -> for each stochastic layer (s, r, units)."""
        s, b, k, _ = noise.shape
        return [part.reshape(s, b * k, -1) for part in noise.split(self.latents, -1)]

    def recognise(self, x: Tensor, noise: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Sample z ~ q(z | x), k times per image; the first layer's network runs once per image.

        Returns:
            z[1:], each (s, r, units), and each layer's mean and log sigma (of the first layer: (s, b, units)).
        """
        s, b, k, _ = noise.shape
        z, heads, h = [], [], x
        for i, (q, eps) in enumerate(zip(self.q, self.split_noise(noise), strict=True)):
            mu, log_sigma = q.split(q(h))
            heads.append((mu, log_sigma))
            if i == 0 and k > 1:
                mu, log_sigma = (t[:, :, None].expand(s, b, k, -1).reshape(s, b * k, -1) for t in (mu, log_sigma))
            h = torch.addcmul(mu, torch.exp(log_sigma), eps)
            z.append(h)
        return z, heads

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """log w = log p(x, z) - log q(z | x) (IWAE Eq. 8): images (s, b, d), noise (s, b, k, latents) -> (s, b, k)."""
        z, heads = self.recognise(x, noise)
        return self._log_weights(x, noise, z, heads, [p(z_i) for p, z_i in zip(self.p, z, strict=True)])

    def _log_weights(
        self, x: Tensor, noise: Tensor, z: list[Tensor], heads: list[tuple[Tensor, Tensor]], outs: list[Tensor]
    ) -> Tensor:
        s, b, k, _ = noise.shape
        log_w = self.p[0].log_prob(outs[0].view(s, b, k, -1), x[:, :, None])
        # log p(top z) - sum of log q: -z^2 / 2 + log sigma + eps^2 / 2, and as many log(2 pi) / 2 as lower latents.
        log_w = log_w + 0.5 * (noise.square().sum(-1) - z[-1].square().sum(-1).view(s, b, k))
        for i, (_, log_sigma) in enumerate(heads):
            log_w = log_w + log_sigma.sum(-1).view(s, b, -1)
            if i:
                log_w = (
                    log_w + self.p[i].log_prob(outs[i], z[i - 1]).view(s, b, k) + 0.5 * LOG_2PI * self.latents[i - 1]
                )
        return log_w

    @staticmethod
    def kl(mu: Tensor, log_sigma: Tensor) -> Tensor:
        """KL(N(mu, sigma^2) || N(0, I)) in closed form (AEVB Appendix B), (..., z) -> (...)."""
        return 0.5 * (mu.square() + torch.exp(2 * log_sigma) - 1 - 2 * log_sigma).sum(-1)

    def elbo(self, x: Tensor, noise: Tensor, beta: float = 1.0) -> Tensor:
        """AEVB Eq. 10: log p(x | z) averaged over the k draws, minus beta times the KL in closed form, (s, b)."""
        s, b, k, _ = noise.shape
        z, [(mu, log_sigma)] = self.recognise(x, noise)
        log_p = self.p[0].log_prob(self.p[0](z[0]).view(s, b, k, -1), x[:, :, None]).mean(-1)
        return log_p - beta * self.kl(mu, log_sigma)

    @staticmethod
    def bound(log_w: Tensor) -> Tensor:
        """L_k = log 1/k sum w (IWAE Eq. 8), (..., k) -> (...)."""
        return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])

    # ---- their gradients by hand: each fills `gradient` with the derivative to ascend, summed over the images

    def ascend(self, x: Tensor, noise: Tensor, objective: Literal["elbo", "vae", "iwae"], beta: float = 1.0) -> None:
        """Gradient of `elbo`, of the mean of log w over the k samples ("vae"), or of L_k ("iwae", Eq. 14)."""
        s, b, k, _ = noise.shape
        z, heads = self.recognise(x, noise)
        outs = [p(z_i) for p, z_i in zip(self.p, z, strict=True)]
        a: Tensor | float = 1 / k
        if objective == "iwae" and k > 1:
            a = torch.softmax(self._log_weights(x, noise, z, heads, outs), -1).view(s, b * k, 1)

        g_out = self.p[0].gradient(outs[0].view(s, b, k, -1), x[:, :, None]).view(s, b * k, -1)
        g_z = [self.p[0].backward(g_out if k == 1 else g_out.mul_(a))]
        for i in range(1, len(z)):  # p(z[i] | z[i+1]): its density falls to z[i] as it rises to the mean
            g_out = self.p[i].gradient(outs[i], z[i - 1]).mul_(a)
            g_z[i - 1] -= g_out[..., : self.latents[i - 1]]
            g_z.append(self.p[i].backward(g_out))
        if objective != "elbo":
            g_z[-1] -= z[-1] if k == 1 else z[-1] * a  # log p(z) of the top layer

        for i in reversed(range(len(z))):
            (mu, log_sigma), q, g_mu = heads[i], self.q[i], g_z[i]
            g_log_sigma = g_mu * self.split_noise(noise)[i]
            if i == 0 and k > 1:
                g_mu, g_log_sigma = (g.view(s, b, k, -1).sum(2) for g in (g_mu, g_log_sigma))
            sigma = torch.exp(log_sigma)
            g_log_sigma = g_log_sigma * sigma
            if objective == "elbo":
                g_mu = g_mu - beta * mu
                g_log_sigma += beta * (1 - sigma * sigma)
            else:
                g_log_sigma += 1.0 if i == 0 else a  # -log q(z | x); the k weights of an image add up to one
            g_in = q.backward(q.join(g_mu, g_log_sigma, mu), inputs=i > 0)
            if i:
                g_z[i - 1] += g_in

    def ascend_wake_sleep(self, x: Tensor, noise: Tensor, dream_z: Tensor, dream_noise: Tensor) -> None:
        """Wake: log p(x | z) at z ~ q(z | x), for p. Sleep: log q(z | x) at a dream (z, x) ~ p, for q.

        Args:
            noise: (s, b, 1, z). dream_z: (s, b, z) from the prior. dream_noise: (s, b, d) for x ~ p(x | z).
        """
        [z], _ = self.recognise(x, noise)
        p, q = self.p[0], self.q[0]
        p.backward(p.gradient(p(z), x), inputs=False)
        q.backward(q.gradient(q(p.sample(p(dream_z), dream_noise)), dream_z), inputs=False)

    def ascend_given(self, x: Tensor, z: Tensor) -> None:
        """log p(x | z) at samples of the posterior, for p: the M step of Monte Carlo EM (AEVB Appendix E)."""
        self.p[0].backward(self.p[0].gradient(self.p[0](z), x), inputs=False)

    # ---- what a trained model is asked

    def log_joint(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z), (s, b), and its derivative with respect to z, (s, b, z), of a model with one layer."""
        p = self.p[0]
        out = p(z)
        log_p = p.log_prob(out, x) - 0.5 * (z.square().sum(-1) + LOG_2PI * z.shape[-1])
        return log_p, p.backward(p.gradient(out, x), weights=False) - z

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, samples: int, numbers: Sequence[torch.Generator], chunk: int) -> Tensor:
        """L_samples of each image, (s, b), `chunk` samples at a time: a running log-sum-exp (IWAE Section 5)."""
        total = torch.full(x.shape[:2], -math.inf, device=x.device)
        for begin in range(0, samples, chunk):
            k = min(chunk, samples - begin)
            log_w = self.log_weights(x, draw(numbers, (x.shape[1], k, sum(self.latents)), x.device))
            total = torch.logaddexp(total, torch.logsumexp(log_w, -1))
        return total - math.log(samples)

    @torch.no_grad()
    def activity(self, x: Tensor, noise: Tensor) -> list[Tensor]:
        """Cov_x(E_q[u]) of each latent unit (IWAE Section 5), per layer (s, units).

        The mean of a second-layer unit is averaged over the k samples of the first.
        """
        _, heads = self.recognise(x, noise)
        s, b = x.shape[:2]
        return [mu.view(s, b, -1, mu.shape[-1]).mean(2).var(1, correction=0) for mu, _ in heads]

    @torch.no_grad()
    def remove(self, units: list[Tensor]) -> None:
        """Cut latent units out, as the official code does: masks per layer, (s, units), True to remove.

        A unit without effect on x whose posterior is its prior adds nothing to log w: its weights into every network
        that reads it become zero, as do both heads that produce it.
        """
        for i, mask in enumerate(units):
            keep = (~mask).to(self.theta.dtype)
            readers = [self.p[i]] + ([self.q[i + 1]] if i + 1 < len(self.q) else [])
            writers = [self.q[i]] + ([self.p[i + 1]] if i + 1 < len(self.p) else [])
            for net in readers:
                net.weights[0] *= keep[:, :, None]
            for net in writers:
                net.weights[-1] *= keep.repeat(1, 2)[:, None]
                net.biases[-1] *= keep.repeat(1, 2)[:, None]

    @torch.no_grad()
    def dream(self, z: Tensor) -> Tensor:
        """Mean pictures for top-layer latents (s, r, z); lower layers sit at their means."""
        for p in reversed(self.p):
            z = p.mean(p(z))
        return z


def draw(numbers: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Standard normal (s, *shape), one generator per seed: a seed's noise does not depend on its company."""
    noise = torch.empty(len(numbers), *shape)
    for row, rng in zip(noise, numbers, strict=True):
        row.normal_(generator=rng)
    return noise.to(device)
