"""Train variational, importance weighted and rival autoencoders of one kind, all seeds at once."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("vae")

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.metrics import mean_over
from common.optim import stages
from common.random import generator
from common.run import Run
from papers.vae.config import Config
from papers.vae.data import Source, binary, grey, load
from papers.vae.hmc import Hmc, marginal_likelihood
from papers.vae.model import VAE, draw
from papers.vae.sample import save_samples

SEEDS = "stacked"  # one model holds all seeds; processes share each batch
IMAGES, ROWS = 20, 1_000  # an evaluation's chunk: images, and rows = images * samples (fits a core's cache)


class IwaeAdam(torch.optim.Adam):
    """Adam as in the official IWAE code: the second moment starts at one, eps is added to the uncorrected root.

    torch divides by sqrt(v) / sqrt(1 - beta2^t) + eps; the code's step is that with eps / sqrt(1 - beta2^t).
    """

    def __init__(self, theta: torch.nn.Parameter, lr: float, betas: tuple[float, float], eps: float, **kwargs: Any):
        super().__init__([theta], lr=lr, betas=betas, eps=eps, **kwargs)
        self.plain_eps = eps
        self.state[theta] = {
            "step": torch.zeros((), device=theta.device),
            "exp_avg": torch.zeros_like(theta),
            "exp_avg_sq": torch.ones_like(theta),
        }

    def step(self, closure: Any = None) -> Any:
        """One update; the number of updates is read from the optimiser's own state."""
        group = self.param_groups[0]
        group["updates"] = group.get("updates", 0) + 1
        group["eps"] = self.plain_eps / math.sqrt(1 - group["betas"][1] ** group["updates"])
        return super().step(closure)


def make_optimizer(cfg: Config, model: VAE) -> torch.optim.Optimizer:
    """Ascends the objective summed over a batch, so the prior on the parameters has the weight batch / N."""
    decay = cfg.weight_decay * cfg.batch_size / cfg.train_images
    common: dict[str, Any] = {"weight_decay": decay, "maximize": True, "fused": True}
    if cfg.optimizer == "adagrad":
        common["fused"] = model.theta.device.type == "cpu"  # torch has no other fused Adagrad
        return torch.optim.Adagrad([model.theta], lr=cfg.lr, eps=cfg.eps, **common)
    betas = (cfg.beta1, cfg.beta2)
    if cfg.optimizer == "iwae-adam":
        return IwaeAdam(model.theta, cfg.lr, betas, cfg.eps, **common)
    return torch.optim.Adam([model.theta], lr=cfg.lr, betas=betas, eps=cfg.eps, **common)


def schedule(cfg: Config, per_epoch: int) -> Callable[[int], float]:
    """Multiplier of lr: constant, or the code's stages of 3^i epochs at 0.1 * round(10^(1 - i/7), 1)."""
    if not cfg.lr_stages:
        return lambda step: 1.0
    ends = [per_epoch * (3 ** (i + 1) - 1) // 2 for i in range(8)]
    return stages(ends, [0.1 * round(10 ** (1 - i / 7), 1) for i in range(8)])


def train(cfg: Config, run: Run) -> None:
    """Train, and leave the metrics of every seed."""
    if run.device.type == "cpu":
        torch.set_num_threads(1)  # products this small gain nothing from a second thread; another run does
    pictures = load(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, pictures.fingerprint)
    pixels, test = pictures.train[: cfg.train_images].to(run.device), pictures.test.to(run.device)
    levels = 256.0 if cfg.dataset == "local/frey-faces" else 255.0  # faces / 256 as in dpkingma/anglepy
    source = Source(pixels, cfg.batch_size, run.seeds, cfg.binarise, cfg.shuffle, levels)
    hidden = [[n] * cfg.hidden_layers for n in cfg.hidden]
    model = VAE(run.seeds, pixels.shape[1], hidden, cfg.latents, cfg.decoder, cfg.log_variance, run.device)
    mean = grey(pixels, levels).mean(0) if cfg.output_bias else None
    model.initialise(cfg.init, cfg.init_sd, mean)
    optimizer = make_optimizer(cfg, model)
    multiplier = schedule(cfg, source.batches.per_epoch)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    em = MonteCarloEM(cfg, run, model, source) if cfg.objective == "mcem" else None
    if em is not None:
        state |= em.state
    world = run.accelerator.num_processes
    evaluation = Evaluation(cfg, run, model, pixels, test, levels)

    total = cfg.train_steps + cfg.then_steps
    shown = log_points(total, per_decade=2 if cfg.hmc_images else 10)
    with torch.no_grad():
        for step in run.steps(total, state):
            optimizer.param_groups[0]["lr"] = cfg.lr * (multiplier(step) if step < cfg.train_steps else 0.1)
            if em is not None:
                em.ascend(step)
            else:
                ascend(cfg, run, model, source(step), step)
            if world > 1:  # each process has summed over its own images
                model.gradient.copy_(run.mean(model.gradient) * world)
            optimizer.step()
            if step in shown:
                run.log(step, **evaluation.curve(step))
        metrics = evaluation.final()
        if run.main:
            save_samples(run.picture("samples", "What the trained model draws from its prior"), model, pictures.shape)
    run.finish(metrics)


def ascend(cfg: Config, run: Run, model: VAE, x: Tensor, step: int) -> None:
    """The gradient of one batch. All noise is drawn for the global batch, and each process takes its rows."""
    first = step < cfg.train_steps
    objective, k = (cfg.objective, cfg.samples) if first else (cfg.then_objective, cfg.then_samples)
    b, units = cfg.batch_size, sum(cfg.latents)
    numbers = [generator(seed, "noise", step) for seed in run.seeds]
    noise = run.share(draw(numbers, (b, k, units), run.device), 1)
    x = run.share(x, 1)
    if objective == "wake-sleep":
        dream_z = draw(numbers, (b, units), run.device)
        if cfg.decoder == "gaussian":
            dream_noise = draw(numbers, (b, model.pixels), run.device)
        else:
            dream_noise = torch.stack([torch.rand(b, model.pixels, generator=g) for g in numbers]).to(run.device)
        model.ascend_wake_sleep(x, noise, run.share(dream_z, 1), run.share(dream_noise, 1))
    else:
        assert objective in ("elbo", "vae", "iwae")
        model.ascend(x, noise, objective, cfg.beta)


class MonteCarloEM:
    """AEVB Appendix E: one HMC transition of a batch's chains, then several weight updates with what they hold."""

    def __init__(self, cfg: Config, run: Run, model: VAE, source: Source) -> None:
        self.cfg, self.run, self.model, self.source = cfg, run, model, source
        s, n = len(run.seeds), len(source.pixels)
        self.chains = draw([generator(seed, "first states") for seed in run.seeds], (n, cfg.latents[0]), run.device)
        self.sizes = torch.full((s, n), 0.05, device=run.device)
        self.state = {"chains": self.chains, "sizes": self.sizes}
        self.hmc = Hmc(cfg.em_leapfrog_steps)

    def ascend(self, step: int) -> None:
        """E step at every em_updates-th step (by every process, for the whole batch), M step at each."""
        batch = step // self.cfg.em_updates
        index, x = self.source.batches.index(batch), self.source(batch)
        seeds = torch.arange(len(self.run.seeds), device=index.device)[:, None]
        z = self.chains[seeds, index]
        if step % self.cfg.em_updates == 0:
            size = self.sizes[seeds, index]
            numbers = [generator(seed, "transition", step) for seed in self.run.seeds]
            self.hmc.step(lambda z: self.model.log_joint(x, z), z, size, numbers, tune=True)
            self.chains[seeds, index], self.sizes[seeds, index] = z, size
        self.model.ascend_given(self.run.share(x, 1), self.run.share(z, 1))


class Evaluation:
    """Bounds, likelihoods and active units; chunks of images are shared out among the processes."""

    def __init__(self, cfg: Config, run: Run, model: VAE, pixels: Tensor, test: Tensor, levels: float) -> None:
        self.cfg, self.run, self.model, self.levels = cfg, run, model, levels
        self.pixels = {"train": pixels, "test": test}

    def images(self, split: str, begin: int, end: int) -> Tensor:
        """Images of a split, (s, n, d). Binary ones are drawn once per seed, as the reported run's were."""
        pixels = self.pixels[split][begin:end]
        if self.cfg.binarise == "no":
            return grey(pixels, self.levels).expand(len(self.run.seeds), -1, -1)
        draws = [binary(pixels, generator(seed, "evaluate", split, begin)) for seed in self.run.seeds]
        return torch.stack(draws).to(torch.float32)

    def mean_over(
        self, split: str, n: int, chunk: int, value: Callable[[Tensor, list[torch.Generator]], Tensor]
    ) -> Tensor:
        """Mean over the first n images of value(images, generators), (s, images) -> (s,)."""

        def of(chosen: slice) -> Tensor:
            numbers = [generator(seed, "evaluation noise", split, chosen.start) for seed in self.run.seeds]
            return value(self.images(split, chosen.start, chosen.stop), numbers)

        return mean_over(self.run, min(n, len(self.pixels[split])), chunk, of)

    def bound(self, x: Tensor, numbers: list[torch.Generator]) -> Tensor:
        """The lower bound of each image, estimated with one sample."""
        noise = draw(numbers, (x.shape[1], 1, sum(self.cfg.latents)), x.device)
        if len(self.cfg.latents) == 1:
            return self.model.elbo(x, noise)
        return self.model.log_weights(x, noise)[..., 0]

    def likelihood(self, x: Tensor, numbers: list[torch.Generator]) -> Tensor:
        """L_k of each image (IWAE Section 5)."""
        return self.model.log_likelihood(x, self.cfg.likelihood_samples, numbers, ROWS // IMAGES)

    def hmc(self, x: Tensor, numbers: list[torch.Generator]) -> Tensor:
        """log p(x) of each image (AEVB Appendix D)."""
        cfg = self.cfg
        return marginal_likelihood(
            self.model, x, cfg.hmc_samples, cfg.hmc_leapfrog_steps, cfg.hmc_burn_in_steps, numbers
        )

    def curve(self, step: int) -> dict[str, Tensor]:
        """What the learning curves show, on the first thousand (hundred) images."""
        values = {}
        for split in ("train", "test"):
            if self.cfg.objective != "mcem":
                values[f"{split}_bound"] = self.mean_over(split, 1_000, 100, self.bound)
            if self.cfg.hmc_images:
                values[f"{split}_log_likelihood"] = self.mean_over(split, 100, 100, self.hmc)
        return values

    def final(self) -> list[dict[str, float]]:
        """All metrics, one mapping per seed. Log likelihoods are per image, in nats."""
        cfg, model, values = self.cfg, self.model, {}
        for split in ("train", "test"):
            if cfg.objective != "mcem":  # which has no recognition model
                values[f"{split}_bound"] = self.mean_over(split, len(self.pixels["test"]), 100, self.bound)
            if cfg.hmc_images:
                values[f"{split}_log_likelihood"] = self.mean_over(split, cfg.hmc_images, 100, self.hmc)
        if cfg.likelihood_samples:
            n = len(self.pixels["test"])
            values["test_nll"] = -self.mean_over("test", n, IMAGES, self.likelihood)
            if cfg.likelihood_train_images:
                values["train_nll"] = -self.mean_over("train", cfg.likelihood_train_images, IMAGES, self.likelihood)
                values["train_test_gap"] = values["test_nll"] - values["train_nll"]
            x = self.images("train", 0, cfg.activity_images)
            noise = draw(
                [generator(s, "activity") for s in self.run.seeds], (x.shape[1], 1, sum(cfg.latents)), x.device
            )
            active = [activity > 0.01 for activity in model.activity(x, noise)]
            for i, units in enumerate(active):
                values["active_units" if i == 0 else f"active_units_{i + 1}"] = units.sum(1)
            trained = model.theta.detach().clone()
            model.remove([~units for units in active])
            values["nll_without_inactive"] = -self.mean_over("test", n, IMAGES, self.likelihood)
            values["change_without_inactive"] = values["nll_without_inactive"] - values["test_nll"]
            model.theta.copy_(trained)
        return [{name: float(v[i]) for name, v in values.items()} for i in range(len(self.run.seeds))]


def log_points(total: int, per_decade: int = 10) -> set[int]:
    """Steps after which a point of the learning curve is taken: some per decade, and the last."""
    return {min(total, round(10 ** (i / per_decade))) - 1 for i in range(per_decade * len(str(total)) + 1)}
