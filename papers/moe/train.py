"""Trains language models with a mixture of experts, or the layer alone on Gaussian inputs, or takes its time."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("moe")

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data import hub
from common.data.text import Windows
from common.errors import UserError
from common.fit import fit
from common.metrics import mean_over
from common.random import generator
from common.run import Run
from papers.moe import data, timing
from papers.moe.audit import build, build_makemoe, build_moe, cv
from papers.moe.config import Config
from papers.moe.model import Link, MoE
from papers.moe.routing import Draws, Routing, cv_squared

SEEDS = "single"  # one seed after the other; processes share each batch, and the experts
MEASURED = 4  # batches over which the use of the experts is averaged ("several training batches", Appendix A)
HELD_OUT_ROWS = 16_384  # Gaussian inputs of the test
LOGITS = 2**28  # at most so many at once in the evaluation


def train(cfg: Config, run: Run) -> None:
    """Carry out the experiment a configuration names."""
    {"language": language, "makemoe": makemoe, "regression": regression, "timing": time_layers}[cfg.experiment](
        cfg, run
    )


def schedule(cfg: Config, step: int) -> float:
    """Linear warm-up, then the inverse square root of the step (C.1)."""
    return min((step + 1) / cfg.warmup_steps, (cfg.warmup_steps / (step + 1)) ** 0.5)


def balance(cfg: Config, routing: Routing | None) -> tuple[Tensor | float, dict[str, Tensor]]:
    """What is added to the loss (Eq. 7, 11; Switch Eq. 4), and the use of the experts, to be logged."""
    if routing is None:
        return 0.0, {}
    importance, load = cv_squared(routing.importance), cv_squared(routing.load)
    shown = {"cv_importance": importance.sqrt(), "cv_load": load.sqrt()}
    return cfg.w_importance * importance + cfg.w_load * load + routing.penalty, shown


def join(cfg: Config, run: Run, moe: MoE | None) -> None:
    """Share the experts out among the processes, where there are several of both."""
    world = run.part[1]
    if moe is None or moe.gate is None or world == 1:
        return
    if cfg.experts % world:
        raise UserError(f"{cfg.experts} experts do not divide among {world} processes; launch a divisor of them")
    moe.join(Link())


def pairs(cfg: Config) -> int:
    """Experts a token is sent to."""
    return cfg.active**2 if cfg.groups else cfg.active


def use_of_experts(batches: list[Routing], asked: int, prefix: str) -> dict[str, float]:
    """Table 6's columns, averaged over batches: importance and smooth load (Eq. 6, 10), and what was really sent.

    Args:
        asked: pairs of a token and an expert in a batch, before any is passed over.
        prefix: of the metrics' names.
    """
    taken = [routing.taken.double() for routing in batches]
    columns = {
        "cv_importance": [cv(routing.importance) for routing in batches],
        "cv_load": [cv(routing.load) for routing in batches],
        "max_over_mean_load": [float(routing.load.max() / routing.load.mean()) for routing in batches],
        "max_over_mean_count": [float(c.max() / c.mean()) for c in taken],
        "dropped_percent": [max(0.0, 100 * (1 - float(c.sum()) / asked)) for c in taken],
    }
    return {prefix + name: sum(values) / len(values) for name, values in columns.items()}


def adam(cfg: Config, model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=cfg.lr, fused=True)


def language(cfg: Config, run: Run) -> None:
    """Embedding, LSTM, MoE, LSTM, softmax (Appendix C)."""
    seed, device = run.seeds[0], run.device
    if cfg.unit == "character":
        corpus = data.characters(cfg.dataset, run.data_dir)
    else:
        corpus = data.words(cfg.dataset, run.data_dir, cfg.min_count)
    run.read(cfg.dataset, corpus.fingerprint)
    text, test = corpus.train.to(device), corpus.test.to(device)
    model = build(cfg, corpus.vocabulary)
    model.initialise(generator(seed, "weights"), cfg.init_scale or None)
    model.to(device)
    join(cfg, run, model.moe)

    def loss(wrapped: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        draws = Draws(seed, "noise", step, device=device, part=run.part)
        nll, routing = wrapped(*batch, draws, cfg.softmax_samples)
        added, shown = balance(cfg, routing)
        return nll.mean() + added, {"train_loss": nll.mean(), **shown}

    batches = Windows(text, cfg.length, cfg.batch_size, seed, run.share)
    fit(
        run, model, adam(cfg, model), batches, loss, cfg.steps, schedule=lambda step: schedule(cfg, step),
        log_every=max(1, cfg.steps // 50),
    )  # fmt: skip

    if model.moe is not None:
        model.moe.join(None)  # every process computes its part of the evaluation alone
    windows = (len(test) - 1) // cfg.length
    x, y = (test[i : i + windows * cfg.length].view(windows, cfg.length) for i in (0, 1))

    def nll(chosen: slice) -> Tensor:
        with run.accelerator.autocast():
            return model(x[chosen], y[chosen])[0].mean(1)

    at_once = max(1, min(cfg.batch_size, LOGITS // (cfg.length * corpus.vocabulary)))
    mean = float(mean_over(run, windows, at_once, nll))
    metrics = {f"perplexity_per_{cfg.unit}": math.exp(min(mean, 700.0)), "neg_log_perplexity": -mean}
    if model.moe is not None and model.moe.gate is not None:
        groups = ("", text, cfg.measured_batch_size), ("batch_", text, cfg.batch_size), (
            "heldout_", test, cfg.measured_batch_size,
        )  # fmt: skip
        for prefix, part, size in groups:
            source, routed = Windows(part, cfg.length, size, seed, purpose=f"{prefix}measured"), []
            for step in range(MEASURED):
                with torch.no_grad(), run.accelerator.autocast():
                    # as in training, noise and dropout included: it is the load of training that memory must hold
                    routing = model.hidden(source(step)[0], Draws(seed, prefix, "measured", step, device=device))[1]
                assert routing is not None
                routed.append(routing)
            metrics |= use_of_experts(routed, pairs(cfg) * size * cfg.length, prefix)
    run.finish([metrics])


def makemoe(cfg: Config, run: Run) -> None:
    """makeMoE's Transformer; at the end the losses of random windows of both parts of the text, with gate noise."""
    if cfg.unit != "character":
        raise UserError("makeMoE reads characters: leave --unit character with --experiment makemoe")
    seed, device = run.seeds[0], run.device
    corpus = data.characters(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, corpus.fingerprint)
    model = build_makemoe(cfg, corpus.vocabulary)
    model.initialise(generator(seed, "weights"))
    model.to(device)

    def loss(wrapped: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        nll = wrapped(*batch, Draws(seed, "noise", step, device=device, part=run.part)).mean()
        return nll, {"train_loss": nll}

    batches = Windows(corpus.train.to(device), cfg.length, cfg.batch_size, seed, run.share)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, fused=True)  # its decay of 0.01 is torch's (code)
    fit(run, model, optimizer, batches, loss, cfg.steps, log_every=max(1, cfg.steps // 50))

    model.eval()
    metrics = {}
    for part, text in (("train", corpus.train), ("val", corpus.test)):
        windows = Windows(text.to(device), cfg.length, cfg.batch_size, seed, purpose=f"{part} measured")

        def nll(chosen: slice, windows: Windows = windows, part: str = part) -> Tensor:
            draws = Draws(seed, part, "measured", chosen.start, device=device)
            return model(*windows(chosen.start), draws).mean()[None]

        metrics[f"{part}_loss"] = float(mean_over(run, cfg.measured_batch_size // cfg.batch_size, 1, nll))
    run.finish([metrics])


def regression(cfg: Config, run: Run) -> None:
    """The layer alone learns a random net on Gaussian inputs: the same for all seeds, which draw inputs and weights."""
    seed, device, d = run.seeds[0], run.device, cfg.width
    teacher = [torch.randn(a, b, generator=generator("teacher", a, b)) / a**0.5 for a, b in ((d, 256), (256, d))]
    first, second = (2 * teacher[0]).to(device), teacher[1].to(device)
    run.read(cfg.dataset, hub.fingerprint(*(matrix.numpy() for matrix in teacher)))
    model = build_moe(cfg)
    model.initialise(generator(seed, "weights"), cfg.init_scale or None)
    model.to(device)
    join(cfg, run, model)

    def inputs(rows: int, purpose: str, step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(rows, d, generator=generator(seed, purpose, step)).to(device)
        return x, (x @ first).tanh() @ second

    def batch(step: int) -> tuple[Tensor, ...]:
        return tuple(map(run.share, inputs(cfg.batch_size, "inputs", step)))

    def loss(wrapped: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, target = batch
        y, routing = wrapped(x, Draws(seed, "noise", step, device=device, part=run.part))
        added, shown = balance(cfg, routing)
        error = F.mse_loss(y, target)
        return error + added, {"train_loss": error, **shown}

    fit(
        run, model, adam(cfg, model), batch, loss, cfg.steps, schedule=lambda step: schedule(cfg, step),
        log_every=max(1, cfg.steps // 50),
    )  # fmt: skip
    model.join(None)
    x, target = inputs(HELD_OUT_ROWS, "test", 0)
    error = mean_over(
        run, HELD_OUT_ROWS, cfg.batch_size, lambda rows: (model(x[rows])[0] - target[rows]).square().mean(1)
    )
    metrics = {"test_mse": float(error), "test_mse_of_variance": float(error / target.var())}
    for prefix, size in (("", cfg.measured_batch_size), ("batch_", cfg.batch_size)) if model.gate is not None else ():
        routed = []
        for step in range(MEASURED):
            with torch.no_grad():
                x, _ = inputs(size, f"{prefix}measured", step)
                routed.append(model(x, Draws(seed, prefix, "measured", step, device=device))[1])
        metrics |= use_of_experts(routed, pairs(cfg) * size, prefix)
    run.finish([metrics])


def time_layers(cfg: Config, run: Run) -> None:
    """Forward and backward pass of the layer, of the loop over experts and of transformers' layers: time per token."""
    run.timed()
    found = torch.full((len(cfg.timed_experts), len(timing.KINDS)), torch.nan, dtype=torch.float64)
    for step in run.steps(len(cfg.timed_experts), {"found": found}, every=1):
        n = cfg.timed_experts[step]
        layers = timing.layers(n, cfg.width, cfg.expert_units[0], cfg.active, run.device)
        x = torch.randn(cfg.batch_size, cfg.width, generator=generator(run.seeds[0], "x")).to(run.device)
        found[step] = torch.tensor(timing.microseconds_per_token(layers, x, cfg.steps), dtype=torch.float64)
        run.log(step, experts=float(n), **dict(zip(timing.KINDS, found[step].tolist(), strict=True)))
    run.finish([timing.summary(cfg.timed_experts, found)])
