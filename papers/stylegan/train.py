"""Train StyleGAN, or one of the configurations that lead to it, growing from resolution to resolution."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("stylegan")

from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import extractors, pictures
from common.ema import EMA
from common.errors import UserError
from common.judging import Extractor, Seen, look, scores
from common.random import generator
from common.fit import stop_unless_finite
from common.run import Run
from papers.stylegan.config import Config
from papers.stylegan.data import FACTORS, Folder, Pictures, Reals, load, scaled
from papers.stylegan.evaluation import Sampler, path_lengths, save_grid, save_mixing, separabilities
from papers.stylegan.loss import logistic, wgan
from papers.stylegan.model import Discriminator, Generator, initialise, mixed
from papers.stylegan.schedule import Schedule

SEEDS = "single"  # one seed after the other; processes share each batch
LOGS = 100  # lines of the log


def check(cfg: Config, processes: int) -> None:
    """Raises a UserError for what cannot be trained."""
    for name in ("resolution", "start"):
        side = getattr(cfg, name)
        if side < 4 or side & (side - 1):
            raise UserError(f"{name} {side}: take a power of two, at least 4")
    if cfg.start > cfg.resolution:
        raise UserError(f"start {cfg.start} is above resolution {cfg.resolution}")
    for name in ("total_images", "repeats", "latents", "group", "sample_images", "ema_images", "judge_batch"):
        if getattr(cfg, name) < 1:
            raise UserError(f"{name} {getattr(cfg, name)}: take 1 or more")
    if width := next((b for b in cfg.batch_sizes if b < 1 or b % (processes * min(cfg.group, b))), None):
        raise UserError(f"a batch of {width} does not divide into groups of {cfg.group} in {processes} process(es)")
    last = Schedule.of(cfg).at(cfg.total_images)
    if last.old > 0 or 4 << last.stage < cfg.resolution:
        raise UserError(f"total_images {cfg.total_images} end before {cfg.resolution}x{cfg.resolution} has faded in")
    if cfg.separability_samples and not cfg.dataset.startswith("generated/factors"):
        raise UserError("separability needs pictures with known factors: --dataset generated/factors-32")


def build(cfg: Config, colours: int) -> tuple[Generator, Discriminator]:
    """(G, D), not initialised."""
    return (
        Generator(
            cfg.resolution, colours, cfg.latents, cfg.base, cfg.most, cfg.mapping_layers, cfg.styles, cfg.constant,
            cfg.noise, cfg.blurred, cfg.mapping_lr,
        ),
        Discriminator(cfg.resolution, colours, cfg.base, cfg.most, cfg.group, cfg.blurred),
    )  # fmt: skip


class Fakes:
    """step -> generated pictures of a minibatch; latents, crossover and noise depend on (seed, purpose, step)."""

    def __init__(self, cfg: Config, g: Generator, seed: int, run: Run) -> None:
        self.cfg, self.g, self.seed, self.run = cfg, g, seed, run

    def __call__(self, purpose: str, step: int, b: int, stage: int, old: float) -> Tensor:
        """This process's part of b pictures; moves the running mean of w."""
        cfg, g, run, layers = self.cfg, self.g, self.run, 2 * (stage + 1)
        numbers = generator(self.seed, purpose, step)
        z = torch.randn(b, cfg.latents, generator=numbers)
        w = g.mapping(run.share(z).to(run.device))
        with torch.no_grad():
            g.w_mean.lerp_(run.mean(w.detach().mean(0)), 1 - cfg.w_decay)
        if torch.rand((), generator=numbers) < cfg.mixing:  # one crossover a minibatch (code)
            cut = torch.randint(1, layers, (1, 1), generator=numbers).to(run.device)
            other = g.mapping(run.share(torch.randn(b, cfg.latents, generator=numbers)).to(run.device))
            ws = mixed(torch.stack([w, other]), cut.expand(len(w), 1), layers)
        else:
            ws = w[:, None].expand(-1, layers, -1)
        noise = g.noise(b, stage, generator(self.seed, purpose, "noise", step, device=run.device))
        return g(ws, [run.share(part) for part in noise], stage, old)


def average_gradients(run: Run, model: nn.Module) -> None:
    """Over the processes; what a stage does not use has none."""
    if run.part[1] > 1:
        parameters = [p for p in model.parameters() if p.grad is not None]
        mean = run.mean(torch.cat([p.grad.flatten() for p in parameters]))  # type: ignore[union-attr]
        for p, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))  # type: ignore[union-attr]  # in p's memory order, which fused Adam relies on


def train(cfg: Config, run: Run) -> None:
    """Train with one seed, look at samples on the way, and judge the averaged weights."""
    check(cfg, run.part[1])
    data = load(cfg.dataset, run.data_dir, cfg.resolution, run.device)
    run.read(cfg.dataset, data.fingerprint)
    (seed,) = run.seeds
    g, d = build(cfg, data.colours)
    for net, name in ((g, "generator"), (d, "discriminator")):
        initialise(net, seed, name)
        net.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = EMA(g, 0.0)
    adam = partial(torch.optim.Adam, betas=(cfg.beta1, cfg.beta2), eps=1e-8, fused=True)
    g_adam, d_adam = adam(g.parameters()), adam(d.parameters())
    reals, fakes = Reals(data, cfg.mirror, seed, run.device, run.share), Fakes(cfg, g, seed, run)
    schedule = Schedule.of(cfg)
    assert isinstance(average.model, Generator)
    sampler = Sampler(average.model, seed, data.margin, run.device)
    judge = Judge(cfg, run, data, sampler) if cfg.judge != "none" else None
    best = torch.full((1,), torch.inf, dtype=torch.float64)  # lowest Frechet distance so far
    state = {"generator": g, "discriminator": d, "average": average, "g_adam": g_adam, "d_adam": d_adam, "best": best}

    total = schedule.steps
    grids = {schedule.step_at(i) for i in range(cfg.sample_images, schedule.images, cfg.sample_images)} | {total - 1}
    looks = set[int]()
    if judge and cfg.judge_images:
        full = (4 << p.stage == cfg.resolution and p.old == 0 for p in map(schedule, range(total)))
        first = next(step for step, there in enumerate(full) if there)
        every = range(cfg.judge_images, schedule.images, cfg.judge_images)
        looks = {step for step in map(schedule.step_at, every) if step >= first} | {total - 1}

    for step in run.steps(total, state):
        now = schedule(step)
        b, stage, old = now.batch_size, now.stage, now.old
        logged = step % max(1, total // LOGS) == 0
        if step and now.phase != schedule(step - 1).phase:  # code: reset_opt_for_new_lod
            g_adam.state.clear()
            d_adam.state.clear()
        for group in chain(g_adam.param_groups, d_adam.param_groups):
            group["lr"] = now.lr

        x = reals(schedule.first(step), b, stage, old)
        with torch.no_grad():
            drawn = fakes("D", step, b, stage, old)
        if cfg.loss == "logistic":
            x.requires_grad_()
            d_loss, penalty = logistic(d(x, stage, old), d(drawn, stage, old), x, cfg.gamma)
        else:
            share = torch.rand(b, 1, 1, 1, generator=generator(seed, "between", step))
            between = torch.lerp(x, drawn, run.share(share).to(run.device)).requires_grad_()
            of_real, of_drawn, of_between = (d(each, stage, old) for each in (x, drawn, between))
            d_loss, penalty = wgan(of_real, of_drawn, of_between, between, cfg.penalty, cfg.drift)
        d_adam.zero_grad(set_to_none=True)
        d_loss.backward()
        average_gradients(run, d)
        stop_unless_finite(run, step, d_loss, d, d_adam, logged)
        d_adam.step()

        d.requires_grad_(False)  # passed through, not updated
        score = d(fakes("G", step, b, stage, old), stage, old)
        g_loss = F.softplus(-score).mean() if cfg.loss == "logistic" else -score.mean()
        g_adam.zero_grad(set_to_none=True)
        g_loss.backward()
        average_gradients(run, g)
        stop_unless_finite(run, step, g_loss, g, g_adam, logged)
        g_adam.step()
        d.requires_grad_(True)
        average.decay = 0.5 ** (b / cfg.ema_images)
        average.update(g)
        sampler.g.w_mean.copy_(g.w_mean)  # a mean already (code: beta_nontrainable = 0)

        if logged or step == total - 1:
            shown = {"d_loss": d_loss, "g_loss": g_loss, "penalty": penalty}
            run.log(step, **{name: run.mean(value.detach()) for name, value in shown.items()})
        if step in grids and run.main:
            name = f"samples/{step + 1:08d}.png"
            save_grid(run.folder / name, sampler, cfg.psi, cfg.truncated_layers, stage, old)
        if judge and step in looks:
            _, value = judge.fid()
            best.clamp_max_(value)
            run.log(step, fid=value)

    metrics = judge.all() if judge else {}
    if judge and cfg.judge_images:
        metrics[f"lowest_{judge.fid_name}"] = best.item()
    if run.main:
        alt = "Samples at fixed latents, truncated (psi = 0.7)"
        save_grid(run.picture("grid", alt), sampler, cfg.psi, cfg.truncated_layers, sampler.g.stages - 1, 0.0)
        if cfg.styles and cfg.resolution > 8:
            alt = "Coarse styles (4x4 and 8x8) from the first column, the others from the first row (Figure 3)"
            save_mixing(run.picture("mixing", alt), sampler, cfg.psi, cfg.truncated_layers)
        sheets = sorted((run.folder / "samples").glob("*.png"))
        alt = "A column of samples at fixed latents, as training goes on from left to right"
        pictures.over_time(run.picture("progress", alt), sheets, cfg.resolution)
    run.finish([metrics])


class Judge:
    """Scores of the averaged generator's samples against as many training pictures (Section 2.1)."""

    def __init__(self, cfg: Config, run: Run, data: Pictures | Folder, sampler: Sampler) -> None:
        self.cfg, self.run, self.data, self.sampler = cfg, run, data, sampler
        self.extractor: Extractor
        if cfg.judge == "inception":
            self.extractor = extractors.Inception(run.data_dir, run.device)
            run.read(extractors.INCEPTION, f"sha256:{extractors.INCEPTION_SHA256}")
        elif data.labelled is None:
            raise UserError(f"{cfg.dataset} has no labels to train a classifier on; take --judge inception or none")
        else:
            self.extractor = extractors.classifier(run, cfg.dataset, data=data.labelled)
        self.n, m, side = min(cfg.judge_samples, data.n), data.margin, cfg.resolution

        def real(part: slice) -> Tensor:
            x = (scaled(data(torch.arange(part.start, part.stop, device=run.device), side)) + 1) / 2
            return x[:, :, m : side - m, m : side - m]

        self.real = look(run, self.extractor, self.n, cfg.judge_batch, real)

    def samples(self, purpose: str, k: int, n: int) -> Seen:
        """n samples of k latents each, as the extractor sees them."""
        return look(self.run, self.extractor, n, self.cfg.judge_batch, partial(self.sampler, purpose, k))

    def scores(self, k: int) -> dict[str, float]:
        """All scores."""
        seen = self.samples("judged", k, self.cfg.judge_samples)
        return scores(self.extractor.name, self.real, seen, "train")

    @property
    def fid_name(self) -> str:
        """Of the Frechet distance."""
        return f"fid_{self.extractor.name}_u8_n{self.cfg.judge_samples}_train{self.n}"

    def fid(self) -> tuple[str, float]:
        """Its name and value, of unmixed samples."""
        return self.fid_name, self.scores(1)[self.fid_name]

    def all(self) -> dict[str, float]:
        """Scores, distances of mixed samples, path lengths, separability."""
        cfg, metrics = self.cfg, dict[str, float]()
        for k in cfg.judge_latents:
            found = self.scores(k)
            metrics |= found if k == 1 else {f"mixed{k}_{self.fid_name}": found[self.fid_name]}
        if cfg.path_pairs:
            metrics |= path_lengths(self.sampler, self.extractor, cfg.path_pairs, cfg.judge_batch)
        if cfg.separability_samples:
            seen = self.samples("separability", 1, cfg.separability_samples)
            metrics |= separabilities(self.sampler, seen.probabilities, len(FACTORS), cfg.judge_batch)
        return metrics
