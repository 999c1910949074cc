"""Train a diffusion model; measure its bound, its samples and its progressive code."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("ddpm")

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.data import images
from common.data.augment import ImageBatches, normalise
from common.ema import EMA
from common.errors import UserError
from common.extractors import Inception, classifier
from common.fit import fit
from common.judging import SPLITS, Extractor, look, scores
from common.metrics import mean_over
from common.pictures import over_time
from common.random import generator, integer
from common.run import Run
from papers.ddpm import pictures
from papers.ddpm.config import Config
from papers.ddpm.diffusion import Diffusion
from papers.ddpm.model import UNet
from papers.ddpm.sampling import Chain

SEEDS = "single"  # one seed after the other; processes share each batch
EVALUATED = 256  # pictures a network sees at once in an evaluation
EPOCHS, LATE = 10, 100  # in the first epochs the mean loss of the last steps of each is kept (hf-course prints it)


def check(cfg: Config) -> None:
    """Refuse what no run can mean; raises a UserError."""
    meant = {
        "dropout": 0 <= cfg.dropout < 1,
        "ema_decay": 0 <= cfg.ema_decay < 1,
        "diffusion_steps": cfg.diffusion_steps >= 1,
        "drawn_steps": 0 <= cfg.drawn_steps <= cfg.diffusion_steps,
        "beta_start": 0 < cfg.beta_start <= cfg.beta_end,
        "beta_end": cfg.beta_end < 1,
        "train_steps": cfg.train_steps >= 0,
        "nll_images": cfg.nll_images >= 0,
        "nll_train_images": cfg.nll_train_images >= 0,
        "samples": cfg.samples == 0 or cfg.samples >= SPLITS,
    }
    for name, fine in meant.items():
        if not fine:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)} is out of range (--help says what it is)")


def network(cfg: Config, side: int, channels: int, seed: int) -> UNet:
    """The U-Net of a configuration.

    Raises:
        UserError: sides or widths that do not divide.
    """
    c_out = channels * (2 if cfg.variance == "learned" else 1)
    try:
        net = UNet(
            side, channels, c_out, cfg.base, cfg.multipliers, cfg.blocks, cfg.attention, cfg.dropout, cfg.groups,
            cfg.classes, cfg.dialect,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"{error}; change --base, --multipliers or --groups") from None
    net.initialise(seed)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def levels(x: Tensor, part: slice) -> Tensor:
    """Some of pictures (n, h, w, c) uint8 -> (b, c, h, w) in [0, 1]."""
    return normalise(x[part], 0.0, 255.0)


class Bound(NamedTuple):
    """The variational bound on some pictures.

    Attributes:
        terms: L_{t-1} of each t in bits per dimension, its mean over pictures, (T,) float64.
        variance: of those over pictures, (T,).
        rmse: of x0-hat at each t, on the scale 0 to 255, (T,).
        n: pictures at each t.
    """

    terms: Tensor
    variance: Tensor
    rmse: Tensor
    n: int


class Evaluation:
    """What a trained network is asked. Everything drawn is a pure function of (seed, purpose, place)."""

    def __init__(
        self, cfg: Config, run: Run, diffusion: Diffusion, data: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> None:
        self.cfg, self.run, self.diffusion, self.seed = cfg, run, diffusion, run.seeds[0]
        self.data, self.labels = data, labels
        self.extractor: Extractor | None = None
        if cfg.judge == "classifier":
            self.extractor = classifier(run, cfg.dataset)
        elif cfg.judge == "inception":
            self.extractor = Inception(run.data_dir, run.device)

    def x0(self, split: str, index: Tensor | slice) -> Tensor:
        """Pictures as the network sees them, (b, c, h, w) in [-1, 1]."""
        return normalise(self.data[split][index], 127.5, 127.5)

    @torch.no_grad()
    def bound(self, net: nn.Module, split: str, n: int) -> Bound:
        """L_{t-1} of every t on n pictures (Eq. 5); another part of the split at each t where n is not all of it."""
        run, steps = self.run, self.diffusion.steps
        order = torch.randperm(len(self.data[split]), generator=generator(self.seed, "bound", split))
        sums = torch.zeros(steps, 4, dtype=torch.float64, device=run.device)  # of term, term², squared error, 1
        rank, world = run.part
        for step in range(rank, steps, world):
            for start in range(0, n, EVALUATED):
                place = step * n + torch.arange(start, min(start + EVALUATED, n))
                index = order[place % len(order)].to(run.device)
                x0, y = self.x0(split, index), self.labels[split][index]
                numbers = generator(self.seed, "bound", split, step, start)
                eps = torch.randn(x0.shape, generator=numbers).to(run.device)
                t = torch.full((len(x0),), step, device=run.device)
                x_t = self.diffusion.q_sample(x0, t, eps)
                bits, guess = self.diffusion.term(net(x_t, t, y), x0, x_t, t, clip=True)
                bits, error = bits.double(), (guess - x0).double().square().flatten(1).mean(1)
                sums[step] += torch.stack([bits, bits.square(), error, torch.ones_like(bits)], 1).sum(0)
        if world > 1:
            sums = run.accelerator.reduce(sums, reduction="sum")
        if not bool((sums[:, 3] == n).all()):
            raise RuntimeError(f"evaluated {sums[:, 3].min():.0f} of {n} pictures at a step")
        mean = sums[:, :3].cpu() / n
        variance = (mean[:, 1] - mean[:, 0].square()).clamp_min(0) * n / max(n - 1, 1)
        return Bound(mean[:, 0], variance, 127.5 * mean[:, 2].sqrt(), n)

    def prior(self, split: str) -> float:
        """L_T on all pictures of a split."""
        return mean_over(
            self.run, len(self.data[split]), 1_000, lambda part: self.diffusion.prior(self.x0(split, part))
        ).item()

    def likelihood(self, net: nn.Module) -> dict[str, float]:
        """Bits per dimension of both splits, and the progressive code of the test set (Section 4.3, Table 4)."""
        metrics: dict[str, float] = {}
        for split, n in (("test", self.cfg.nll_images), ("train", self.cfg.nll_train_images)):
            prior = metrics[f"LT_{split}"] = self.prior(split)
            if not n:
                continue
            bound = self.bound(net, split, min(n, len(self.data[split])))
            metrics[f"{split}_nll"] = bound.terms.sum().item() + prior
            metrics[f"{split}_nll_se"] = (bound.variance.sum() / bound.n).sqrt().item()
            if split == "test":
                metrics |= self.progress(bound, prior)
        return metrics

    def progress(self, bound: Bound, prior: float) -> dict[str, float]:
        """Rate and distortion of the progressive code; every t goes to `terms.csv`, Figure 5 to `progress.png`."""
        rate = pictures.rates(bound.terms, prior)
        metrics = {"test_distortion": bound.terms[0].item()}
        for i in range(1, 11):
            k = max(1, i * len(rate) // 10)  # reverse steps, T - t + 1 (Table 4)
            metrics[f"test_rate/{k}"], metrics[f"test_rmse/{k}"] = rate[-k].item(), bound.rmse[-k].item()
        if self.run.main:
            rows = zip(bound.terms.tolist(), rate.tolist(), bound.rmse.tolist(), strict=True)
            text = "".join(f"{t},{a:.8g},{b:.8g},{c:.8g}\n" for t, (a, b, c) in enumerate(rows, 1))
            (self.run.folder / "terms.csv").write_text("t,bits_per_dim,rate,rmse\n" + text, encoding="utf-8")
            path = self.run.picture("progress", "Distortion and rate of progressive decoding (Figure 5)")
            pictures.save_progress(path, rate, bound.rmse)
        return metrics

    def judged(self, chain: Chain, prefix: str = "") -> dict[str, float]:
        """Samples as a network sees them beside the real pictures (`common.judging`)."""
        cfg, run = self.cfg, self.run
        if self.extractor is None or not cfg.samples:
            return {}
        shape = self.x0("test", slice(1)).shape[1:]

        def drawn(part: slice) -> Tensor:
            x = chain.sample((part.stop - part.start, *shape), (self.seed, "samples", part.start), run.device)
            return (x.nan_to_num(nan=-1.0) + 1) / 2  # what is no number counts as black: a diverged run is judged too

        samples = look(run, self.extractor, cfg.samples, EVALUATED, drawn)
        metrics: dict[str, float] = {}
        for split in ("train", "test") if cfg.judge == "inception" else ("test",):
            every = self.data[split]
            real = look(run, self.extractor, len(every), 500, partial(levels, every))
            metrics |= scores(self.extractor.name, real, samples, split)
        return {prefix + name: value for name, value in metrics.items()}


def train(cfg: Config, run: Run) -> None:
    """Train with one seed and measure the averaged weights."""
    check(cfg)
    read = images.load(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, read.fingerprint)
    data = {"train": read.train[: cfg.train_images].to(run.device), "test": read.test.to(run.device)}
    labels = {"train": read.train_labels[: cfg.train_images].to(run.device), "test": read.test_labels.to(run.device)}
    if cfg.classes and int(read.train_labels.max()) >= cfg.classes:
        raise UserError(f"{cfg.dataset} has more than --classes {cfg.classes}")
    _, h, w, c = read.train.shape
    if h != w:
        raise UserError(f"{cfg.dataset} has pictures of {h}x{w}; the U-Net takes square ones")
    seed, b = run.seeds[0], cfg.batch_size
    diffusion = Diffusion(
        cfg.diffusion_steps, cfg.beta_start, cfg.beta_end, cfg.predicts, cfg.variance, run.device, cfg.schedule
    )
    model = network(cfg, h, c, seed).to(run.device)
    ema = EMA(model, cfg.ema_decay)
    ema.model.eval()
    chain = Chain(diffusion, ema.model, cfg.sampler, cfg.sample_steps)
    evaluation = Evaluation(cfg, run, diffusion, data, labels)
    optimizer = torch.optim.Adam(model.parameters(), cfg.lr, fused=True)
    batches = ImageBatches(
        data["train"], labels["train"], b, seed,
        flip=cfg.flip, mean=127.5, scale=127.5, share=run.share, drop_last=cfg.drop_last,
    )  # fmt: skip
    last = max(1, min(batches.per_epoch, cfg.train_steps // 10))  # steps whose mean is the final training loss
    tail = torch.zeros((), device=run.device)
    ends = torch.zeros(EPOCHS, device=run.device)  # sums of the last losses of the first epochs

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """All noise is drawn for the global batch, and each process takes its rows."""
        x0, y = batch
        epoch, place = divmod(step, batches.per_epoch)
        n = min(b, len(data["train"]) - place * b)  # fewer at the end of an epoch, if those are kept
        numbers = generator(seed, "noise", step)
        t = run.share(torch.randint(cfg.drawn_steps or diffusion.steps, (n,), generator=numbers)).to(run.device)
        eps = run.share(torch.randn((n, c, h, w), generator=numbers)).to(run.device, memory_format=torch.channels_last)
        torch.manual_seed(integer(seed, "dropout", step, run.part[0]))
        x_t = diffusion.q_sample(x0, t, eps)
        out = net(x_t, t, y)
        if cfg.objective == "L":
            value = diffusion.term(out, x0, x_t, t, clip=False)[0].mean()
        else:
            value = diffusion.simple_loss(out, x0, x_t, eps, t).mean()
        if step >= cfg.train_steps - last:
            tail.add_(run.mean(value.detach()))
        if epoch < EPOCHS and place >= batches.per_epoch - LATE:
            ends[epoch] += run.mean(value.detach()) / LATE
        return value, {"loss": value}

    def after_step(step: int) -> None:
        ema.update(model)
        if run.main and cfg.grids and (step + 1) % cfg.grid_steps == 0:
            pictures.save_samples(run.folder / f"samples-{step + 1:06d}.png", chain, (c, h, w), seed, run.device)

    fit(
        run, model, optimizer, batches, loss, cfg.train_steps,
        schedule=lambda step: min(1.0, step / cfg.warmup_steps) if cfg.warmup_steps else 1.0,
        clip_norm=cfg.clip_norm or None, log_every=max(1, cfg.train_steps // 100),
        state={"ema": ema, "tail": tail, "ends": ends}, after_step=after_step,
    )  # fmt: skip
    metrics = {"train_loss": (tail / last).item()} if cfg.train_steps else {}
    for epoch in range(min(EPOCHS, cfg.train_steps // batches.per_epoch) if batches.per_epoch >= LATE else 0):
        metrics[f"train_loss_last_{LATE}/epoch{epoch + 1}"] = ends[epoch].item()
    metrics |= evaluation.likelihood(ema.model) | evaluation.judged(chain)
    if cfg.judge_raw:
        metrics |= evaluation.judged(Chain(diffusion, model.eval(), cfg.sampler, cfg.sample_steps), "raw/")
    if run.main and cfg.grids:
        few = evaluation.x0("test", slice(6))
        sheets = sorted(run.folder.glob("samples-*.png"))
        over_time(run.picture("samples", "Samples from the same noise, as training goes on to the right"), sheets, w)
        path = run.picture("denoising", "Three samples as they are denoised; below each the picture that it foresees")
        pictures.save_denoising(path, chain, (c, h, w), seed, run.device)
        path = run.picture("interpolation", "Test pictures at both ends, mixed in the middle of the diffusion")
        pictures.save_interpolation(path, chain, few, seed)
        path = run.picture("lossy", "Test pictures on the right, and what a receiver of the code sees of them")
        pictures.save_lossy(path, chain, few, seed)
    run.finish([metrics])
