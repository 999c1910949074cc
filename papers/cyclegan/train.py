"""Train CycleGAN, or one of its ablations, between two collections of pictures."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("cyclegan")

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from common.fit import stop_unless_finite
from common.random import generator
from common.run import Run
from papers.cyclegan.config import Config
from papers.cyclegan.data import UnpairedBatches, load, scaled, unscaled
from papers.cyclegan.evaluation import contact_sheet, evaluate
from papers.cyclegan.model import (
    Discriminator,
    Generator,
    Judgement,
    Networks,
    Pool,
    Translation,
    linear_decay,
)

SEEDS = "single"  # one seed after the other; processes share each batch
TERMS = ("gan_y", "gan_x", "pair_y", "pair_x", "cycle_x", "cycle_y", "identity_y", "identity_x", "judge_x", "judge_y")
SNAPSHOTS = 6  # samples are kept after 1/32, 1/16, ... 1/2 of the steps and after the last


LEAST = {
    "generator_width": 1, "blocks": 0, "discriminator_width": 1, "discriminator_layers": 1, "lambda_forward": 0,
    "lambda_backward": 0, "lambda_identity": 0, "pool_size": 0, "batch_size": 1, "lr": 0, "constant_epochs": 0,
    "decay_epochs": 0, "sample_pictures": 1,
}  # fmt: skip


def check(cfg: Config) -> None:
    """Raises a UserError for what cannot be trained."""
    for name, least in LEAST.items():
        if getattr(cfg, name) < least:
            raise UserError(f"{name} {getattr(cfg, name)}: take {least} or more")
    if cfg.constant_epochs + cfg.decay_epochs < 1:
        raise UserError("no epochs: set constant_epochs or decay_epochs to 1 or more")
    if cfg.crop_size < 8 or cfg.crop_size % 4:
        raise UserError(f"crop_size {cfg.crop_size}: the generators halve twice; take a multiple of 4, at least 8")
    if cfg.crop_size // 2**cfg.discriminator_layers < 3:
        raise UserError(
            f"{cfg.discriminator_layers} halving layers leave nothing of {cfg.crop_size} pixels; "
            "lower discriminator_layers"
        )
    if not (cfg.gan or cfg.lambda_forward > 0 or cfg.lambda_backward > 0):
        raise UserError("nothing to learn from: set --gan True, or lambda_forward or lambda_backward above 0")


def train(cfg: Config, run: Run) -> None:
    """Train with one seed, keep samples on the way, and measure the last iterate, once."""
    check(cfg)
    domains = load(
        cfg.dataset, run.data_dir, cfg.load_size, cfg.crop_size, cfg.train_pictures, cfg.test_pictures, cfg.paired
    )
    run.read(cfg.dataset, domains.fingerprint)
    (seed,) = run.seeds
    batches = UnpairedBatches(
        domains, cfg.batch_size, cfg.crop_size, cfg.flip, seed, cfg.paired, run.device, run.share
    )  # fmt: skip
    G, F = (Generator(cfg.generator_width, cfg.blocks) for _ in range(2))
    D_X, D_Y = (Discriminator(cfg.discriminator_width, cfg.discriminator_layers) for _ in range(2))
    generators, discriminators = Networks(x=F, y=G), Networks(x=D_X, y=D_Y)
    for purpose, networks in (("generators", generators), ("discriminators", discriminators)):
        networks.initialise(seed, purpose, cfg.init_sd)
        networks.to(run.device)
    adam = partial(torch.optim.Adam, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=True)
    g_optimizer, d_optimizer = adam(generators.parameters()), adam(discriminators.parameters())
    translation = run.wrapped(
        Translation(
            generators, discriminators, cfg.gan, cfg.lambda_forward, cfg.lambda_backward, cfg.lambda_identity,
            cfg.paired,
        )
    )  # fmt: skip
    judgement = run.wrapped(Judgement(discriminators))
    shape = (3, cfg.crop_size, cfg.crop_size)
    pools = [Pool(cfg.pool_size, shape, run.device) for _ in range(2)]
    total = (cfg.constant_epochs + cfg.decay_epochs) * batches.per_epoch
    samples = Samples(cfg.sample_pictures, domains.train_x, domains.train_y, cfg.crop_size, total, run.device)
    log_every = max(1, total // 50)
    sums = {name: torch.zeros((), device=run.device) for name in TERMS}  # since the last line of the log
    state = {
        "generators": generators, "discriminators": discriminators, "g_optimizer": g_optimizer,
        "d_optimizer": d_optimizer, "pools": {"x": pools[0].pictures, "y": pools[1].pictures},
        "samples": samples.rows, "sums": sums,
    }  # fmt: skip

    for step in run.steps(total, state):
        multiplier = linear_decay(step // batches.per_epoch, cfg.constant_epochs, cfg.decay_epochs)
        for group in (*g_optimizer.param_groups, *d_optimizer.param_groups):
            group["lr"] = cfg.lr * multiplier
        x, y = batches(step)

        discriminators.requires_grad_(False)  # passed through, not updated
        loss, fake_x, fake_y, terms = translation(x, y)
        g_optimizer.zero_grad(set_to_none=True)
        run.accelerator.backward(loss)
        stop_unless_finite(run, step, loss, generators, g_optimizer, step % log_every == 0)
        g_optimizer.step()

        if cfg.gan:
            discriminators.requires_grad_(True)
            old_x, old_y = pooled(run, pools, (fake_x, fake_y), seed, step)
            loss, more = judgement(x, old_x, y, old_y)
            d_optimizer.zero_grad(set_to_none=True)
            run.accelerator.backward(loss)
            stop_unless_finite(run, step, loss, discriminators, d_optimizer, step % log_every == 0)
            d_optimizer.step()
            terms |= more

        for name, term in terms.items():
            sums[name] += term
        if (step + 1) % log_every == 0 or step == total - 1:
            steps = step % log_every + 1
            run.log(step, **{name: run.mean(sums[name]) / steps for name in terms})
            for value in sums.values():
                value.zero_()
        samples.keep(step, G, F)

    with torch.no_grad():
        metrics = evaluate(run, domains, G, F)
    if run.main:
        samples.save(run.picture("samples", "Fixed pictures, and below them their translations as training goes on"))
    run.finish([metrics])


def pooled(run: Run, pools: Sequence[Pool], fakes: Sequence[Tensor], seed: int, step: int) -> list[Tensor]:
    """Pictures for the discriminators. Every process holds the whole pool and asks it for the whole batch."""
    everybody = torch.stack(list(fakes), 1)  # (b, 2, 3, h, w)
    if run.part[1] > 1:
        everybody = run.accelerator.gather(everybody)
    numbers = generator(seed, "pool", step)
    return [run.share(pool.query(fresh, step, numbers)) for pool, fresh in zip(pools, everybody.unbind(1), strict=True)]


class Samples:
    """What becomes of fixed training pictures over time. The rows are state: a resumed run has the early ones too."""

    def __init__(self, k: int, train_x: Tensor, train_y: Tensor, size: int, total: int, device: torch.device) -> None:
        k, corner = min(k, len(train_x), len(train_y)), (train_x.shape[1] - size) // 2
        cut = slice(corner, corner + size)
        self.inputs = torch.stack([pictures[:k, cut, cut] for pictures in (train_x, train_y)])
        self.x, self.y = (scaled(pictures.to(device)) for pictures in self.inputs)
        self.steps = sorted({max(1, total >> i) - 1 for i in range(SNAPSHOTS)})
        self.rows = torch.zeros(len(self.steps), *self.inputs.shape, dtype=torch.uint8)

    @torch.no_grad()
    def keep(self, step: int, G: torch.nn.Module, F: torch.nn.Module) -> None:
        """Translate them where it is time."""
        if step in self.steps:
            made = torch.stack([G(self.x), F(self.y)])
            self.rows[self.steps.index(step)] = unscaled(made).cpu()

    def save(self, path: Path) -> None:
        """Inputs in the first row, then one row a time, early to late; X -> Y on the left, Y -> X on the right."""
        Image.fromarray(contact_sheet(self.inputs, self.rows)).save(path)
