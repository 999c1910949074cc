"""Train Mamba, or what it is compared with, on a task or on text; or measure an identity or a cost."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("mamba")

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.cost import now, parameters, slope
from common.data.batches import Batches
from common.data.text import Windows, load_characters
from common.errors import UserError
from common.fit import fit
from common.optim import half_cosine, warmup_cosine
from common.metrics import mean_over
from common.random import generator, integer
from common.run import Run
from papers.mamba import data, scan
from papers.mamba.audit import build, small_lm
from papers.mamba.config import INDUCTION, Config
from papers.mamba.h3 import SmallLM
from papers.mamba.model import Model

SEEDS = "single"  # one seed after the other; processes share each batch
PIECE, TOKENS = 2**14, 2**16  # tokens read at a time from one sequence; and from all that are tested together
LR_END = 1e-5  # of the cosine (E.2)
LR_START, LR_FLOOR = 1e-6, 0.1  # of safari's cosine: where the warm-up begins, and the share of lr it ends at


def train(cfg: Config, run: Run) -> None:
    """Carry out the experiment a configuration names."""
    {"task": task, "h3-task": h3_task, "language": language, "identities": identities}.get(cfg.experiment, cost)(
        cfg, run
    )


def schedule(cfg: Config) -> Callable[[int], float]:
    """Multiplier of lr at a step (E.2; safari, whose cosine runs from step 0 and is looked at after the warm-up)."""
    warm, steps = cfg.warmup_steps, cfg.train_steps
    if cfg.schedule == "linear":
        return lambda step: step / warm if step < warm else (steps - step) / (steps - warm)
    if cfg.schedule == "from-start":
        start = LR_START / cfg.lr
        return lambda step: start + (1 - start) * step / warm if step < warm else half_cosine(step, steps, LR_FLOOR)
    cosine = warmup_cosine(warm, steps, LR_END / cfg.lr)
    return cosine if cfg.schedule == "cosine" else lambda step: cosine(step) if step < cfg.warmup_steps else 1.0


def trained(
    cfg: Config,
    run: Run,
    model: Model | SmallLM,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    said: Callable[[Tensor, Tensor], dict[str, Tensor]],
) -> None:
    """Train in place; the loss is that of the last positions, as many as there are targets."""
    model.initialise(generator(run.seeds[0], "start"))
    model.to(run.device)
    optimizer = torch.optim.AdamW(model.decay_groups(cfg.weight_decay), lr=cfg.lr, betas=(0.9, cfg.beta2), fused=True)

    def loss(net: torch.nn.Module, xy: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if cfg.dropout:
            torch.manual_seed(integer(run.seeds[0], "dropout", step, run.accelerator.process_index))
        logits = net(xy[0], last=xy[1].shape[1])
        value = F.cross_entropy(logits.flatten(0, 1).float(), xy[1].flatten())
        return value, {"train_loss": value, **said(logits, xy[1])}

    fit(
        run, model, optimizer, batch, loss, cfg.train_steps, schedule=schedule(cfg),
        clip_norm=cfg.clip_norm or None, log_every=max(1, cfg.train_steps // 100),
    )  # fmt: skip
    model.eval()


# ---- selective copying and induction heads (Section 4.1)


def task(cfg: Config, run: Run) -> None:
    """Fresh batches at every step; accuracy over fixed test sequences of every length."""
    run.read(cfg.dataset, data.fingerprint(cfg.dataset))
    seed = run.seeds[0]
    if min(cfg.test_lengths) < 3 or (cfg.layer == "hyena" and cfg.block not in ("attention", "transformer")
                                     and cfg.longest < max(cfg.test_lengths)):  # fmt: skip
        raise UserError("test_lengths must be 3 or more, and with Hyena none beyond --longest")

    def drawn(n: int, length: int, *key: int | str) -> tuple[Tensor, Tensor]:
        if cfg.dataset == INDUCTION:
            return data.induction_heads(n, length, cfg.vocabulary, generator(*key))
        return data.selective_copying(n, length, cfg.data_tokens, cfg.vocabulary, generator(*key))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        tokens, target = drawn(cfg.batch_size, cfg.length, seed, "batch", step)
        return run.share(tokens).to(run.device), run.share(target).to(run.device)

    def hits(logits: Tensor, target: Tensor) -> Tensor:
        return 100 * (logits.argmax(-1) == target).float().mean(1)

    def said(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"train_accuracy": hits(logits.detach(), target).mean()}

    model = build(cfg)
    trained(cfg, run, model, batch, said)
    metrics: dict[str, float] = {}
    for length in cfg.test_lengths:

        def right(part: slice, length: int = length) -> Tensor:
            tokens, target = drawn(part.stop - part.start, length, "test", length, part.start)
            logits = answers(model, tokens.to(run.device), target.shape[1])
            return hits(logits, target.to(run.device))

        at_once = max(1, min(64, TOKENS // length))
        metrics[f"accuracy/{length}"] = mean_over(run, cfg.test_sequences, at_once, right).item()
    metrics["accuracy"] = metrics[f"accuracy/{min(cfg.test_lengths, key=lambda n: abs(n - cfg.length))}"]
    run.finish([metrics])


def answers(model: Model, tokens: Tensor, last: int, piece: int = PIECE) -> Tensor:
    """Logits of the last positions; sequences longer than a piece are read piece by piece where that is possible.

    Attention keeps all keys anyhow: it is given the whole sequence.
    """
    length = tokens.shape[1]
    if length - last <= piece or not model.in_pieces or model.positions != "none":
        return model(tokens, last=last)
    states = None
    for first in range(0, length - last, piece):
        _, states = model.read(tokens[:, first : min(first + piece, length - last)], states)
    return model.read(tokens[:, length - last :], states, last)[0]


# ---- the H3 paper's small tasks


def h3_task(cfg: Config, run: Run) -> None:
    """The same sequences again and again, every token a target; accuracy on the last token of others, once."""
    if cfg.dataset not in data.H3_TASKS:
        raise UserError(f"--dataset is {' or '.join(data.H3_TASKS)} with --experiment h3-task, not {cfg.dataset}")
    run.read(cfg.dataset, data.fingerprint(cfg.dataset))
    seed = run.seeds[0]

    def drawn(n: int, use: str) -> Tensor:
        return data.H3_TASKS[cfg.dataset](n, cfg.length, cfg.vocabulary, generator(seed, use)).to(run.device)

    text, held = drawn(cfg.train_sequences, "train"), drawn(cfg.test_sequences, "test")
    batches = Batches(len(text), cfg.batch_size, [seed], run.device, drop_last=False)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = text[run.share(batches.index(step)[0])]
        return rows[:, :-1], rows[:, 1:]

    def hits(logits: Tensor, target: Tensor) -> Tensor:
        return 100 * (logits[:, -1].argmax(-1) == target[:, -1]).float()

    model = small_lm(cfg)
    trained(cfg, run, model, batch, lambda logits, y: {"train_accuracy": hits(logits.detach(), y).mean()})
    right = mean_over(run, len(held), 100, lambda part: hits(model(held[part, :-1], last=1), held[part, 1:]))
    run.finish([{"accuracy": right.item(), "parameters": float(parameters(model))}])


# ---- Section 4.2, scaled


def language(cfg: Config, run: Run) -> None:
    """Characters: the first 90 % are read, the last 10 % give the validation loss of the last iterate."""
    ids, vocabulary, fingerprint = load_characters(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, fingerprint)
    ids = ids.to(run.device)
    cut = int(0.9 * len(ids))
    windows = Windows(ids[:cut], cfg.length, cfg.batch_size, run.seeds[0], run.share)
    n = (len(ids) - cut - 1) // cfg.length
    if n < 1:
        raise UserError(f"the validation text has no window of {cfg.length} characters; take a shorter --length")
    held = ids[cut : cut + n * cfg.length].view(n, -1), ids[cut + 1 : cut + n * cfg.length + 1].view(n, -1)
    model = build(cfg, len(vocabulary))
    trained(cfg, run, model, windows, lambda logits, target: {})

    def per_window(part: slice) -> Tensor:
        losses = F.cross_entropy(model(held[0][part]).mT.float(), held[1][part], reduction="none")
        return losses.mean(1)

    run.finish([{"val_loss": mean_over(run, n, 16, per_window).item(), "parameters": float(parameters(model))}])


# ---- identities (Theorem 1, Section 3.3)


def inputs(b: int, l: int, d: int, n: int, draw: torch.Generator, device: Any, dtype: torch.dtype) -> list[Tensor]:  # noqa: E741
    """x, delta, A, B, C, D of a layer at its start; A stays in float32 at least."""
    step = torch.rand(d, generator=draw) * math.log(100) + math.log(1e-3)
    x, B, C = (torch.randn(b, l, k, generator=draw) for k in (d, n, n))
    delta = (step + 0.1 * torch.randn(b, l, d, generator=draw)).exp()
    exact = torch.promote_types(dtype, torch.float32)
    A, D = -torch.arange(1.0, n + 1).repeat(d, 1), torch.ones(d)
    kinds = ((x, dtype), (delta, dtype), (A, exact), (B, dtype), (C, dtype), (D, exact))
    return [v.to(device, kind) for v, kind in kinds]


def identities(cfg: Config, run: Run) -> None:
    """Largest differences, in float64 and relative to the largest value: scan and loop, selective SSM and gated RNN."""
    draw = generator(run.seeds[0], "inputs")
    worst = torch.zeros(3, dtype=torch.float64)
    for step in run.steps(1, {"worst": worst}):
        given = inputs(cfg.batch_size, cfg.length, cfg.width, cfg.state, draw, run.device, torch.float64)
        given = [v.requires_grad_() for v in given]
        weight = torch.randn(given[0].shape, generator=draw).to(given[0])
        found = []
        for way in (scan.scan_by_loop, scan.selective_scan):
            y, _ = way(*given)
            found.append([y, *torch.autograd.grad((y * weight).sum(), given)])
        errors = [((b - a).abs().max() / a.abs().max()).item() for a, b in zip(*found, strict=True)]
        # Theorem 1: N 1, A -1, B 1, C 1 and zero-order hold are h_t = (1 - g) h_{t-1} + g x_t, g = sigmoid(Linear x)
        x, score = given[0].detach(), weight
        one = x.new_ones(*x.shape[:2], 1)
        d = x.shape[2]
        y, _ = scan.scan_by_loop(
            x, F.softplus(score), -x.new_ones(d, 1), one, one, x.new_zeros(d), zero_order_hold=True
        )
        g, h, gap = score.sigmoid(), x.new_zeros(x.shape[0], d), 0.0
        for t in range(x.shape[1]):
            h = (1 - g[:, t]) * h + g[:, t] * x[:, t]
            gap = max(gap, (y[:, t] - h).abs().max().item())
        worst.copy_(torch.tensor([errors[0], max(errors[1:]), gap]))
        run.log(step, error=worst.max())
    run.finish([dict(zip(("scan_forward", "scan_backward", "gated_rnn"), worst.tolist(), strict=True))])


# ---- costs


def seconds(device: torch.device, call: Callable[[], object], least: int = 3) -> float:
    """Of one call: the fastest of `least` or more, after one that warms up."""
    call()
    taken: list[float] = []
    while len(taken) < least or (sum(taken) < 0.2 and len(taken) < 50):
        begun = now(device)
        call()
        taken.append(now(device) - begun)
    return min(taken)


def kept_bytes(call: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters included."""
    held: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        value = call()
    found = sum(held.values())
    del value
    return found


def cost(cfg: Config, run: Run) -> None:
    """Times and memory at every size of cfg.sizes; random weights and tokens."""
    run.timed()
    measure: dict[str, Callable[..., list[float]]] = {
        "linear-time": at_length,
        "scan-speed": of_scan,
        "throughput": of_generation,
        "memory": of_training,
    }
    ways = {"linear-time": 3, "scan-speed": 3, "throughput": 1, "memory": 1}[cfg.experiment]
    if not cfg.sizes:
        raise UserError("a cost is measured at the lengths or batches of --sizes, and none is given")
    if cfg.experiment == "memory" and run.device.type != "cuda":
        raise UserError("the memory of Table 15 is a GPU's, and torch sees no CUDA device here")
    table = torch.full((len(cfg.sizes), ways), math.nan, dtype=torch.float64)
    with run.device:
        model = build(cfg)
    model.initialise(generator(run.seeds[0], "start", device=run.device))
    for step in run.steps(len(cfg.sizes), {"table": table}, every=1):
        try:
            table[step] = torch.tensor(measure[cfg.experiment](cfg, run, model, cfg.sizes[step]))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        run.log(step, size=float(cfg.sizes[step]), measured=table[step, 0])
    run.finish([summed_up(cfg, table.numpy())])


def summed_up(cfg: Config, table: np.ndarray) -> dict[str, float]:
    """Metrics of a cost's table; what ran out of memory is left out."""
    if cfg.experiment == "linear-time":
        time_slope, memory_slope = (slope(cfg.sizes, table[:, k]) for k in (0, 1))
        state = float(table[-1, 2] / table[0, 2])
        return {"time_slope": time_slope, "memory_slope": memory_slope, "state_growth": state}
    names = {"scan-speed": ("fused_ms", "plain_ms", "sdpa_ms"), "throughput": ("tokens_per_second",)}
    columns = names.get(cfg.experiment, ("memory_gb",))
    found = {
        f"{name}/{size}": float(value)
        for size, row in zip(cfg.sizes, table, strict=True)
        for name, value in zip(columns, row, strict=True)
        if math.isfinite(value)
    }
    if cfg.experiment == "scan-speed":
        for other in ("plain", "sdpa"):
            ratios = {n: found[f"{other}_ms/{n}"] / found[f"fused_ms/{n}"]
                      for n in cfg.sizes if f"{other}_ms/{n}" in found and f"fused_ms/{n}" in found}  # fmt: skip
            found |= {f"{other}_over_fused/{n}": ratio for n, ratio in ratios.items()}
            if ratios:
                found[f"{other}_over_fused"] = float(np.exp(np.mean(np.log(list(ratios.values())))))
    return found


def at_length(cfg: Config, run: Run, model: Any, length: int) -> list[float]:
    """Seconds of a training step, bytes it keeps, bytes of the state that generation carries."""
    tokens = torch.randint(cfg.vocabulary, (cfg.batch_size, length + 1), generator=generator(0, "tokens", length))
    tokens = tokens.to(run.device)

    def forward() -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    with torch.no_grad():
        _, states = model.read(tokens)
    state = sum(t.numel() * t.element_size() for pair in states for t in pair)
    return [seconds(run.device, lambda: forward().backward()), float(kept_bytes(forward)), float(state)]


def of_scan(cfg: Config, run: Run, model: Any, length: int) -> list[float]:
    """Milliseconds of the scan, of the same in plain torch, and of attention of the same width (Figure 8, E.5)."""
    kind = torch.bfloat16 if run.device.type == "cuda" else torch.float32
    draw = generator(run.seeds[0], "inputs", length)
    given = inputs(cfg.batch_size, length, cfg.width, cfg.state, draw, run.device, kind)
    h = given[2].new_zeros(cfg.batch_size, cfg.width, cfg.state)
    q = given[0].unflatten(-1, (-1, 64)).transpose(1, 2)
    ways: tuple[Callable[[], object], ...] = (
        lambda: scan.selective_scan(*given),
        lambda: scan.Chunked.apply(*given, h),
        lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True),
    )
    found = []
    for way in ways:
        try:
            with torch.no_grad():
                found.append(1e3 * seconds(run.device, way))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            found.append(math.nan)
    return found


def of_generation(cfg: Config, run: Run, model: Model, batch: int) -> list[float]:
    """Tokens a second: 128 of them after a prompt, in half precision but for the state space's own parameters."""
    for name, p in model.named_parameters():
        if not name.endswith(("A_log", ".D")):
            p.data = p.data.to(torch.bfloat16)
    prompt = torch.randint(cfg.vocabulary, (batch, cfg.length), generator=generator(0, "prompt")).to(run.device)
    return [batch * 128 / seconds(run.device, lambda: model.generate(prompt, 128), 2)]


def of_training(cfg: Config, run: Run, model: Model, batch: int) -> list[float]:
    """Peak GB of a training step in mixed precision, AdamW's moments included."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(cfg.vocabulary, (batch, cfg.length + 1), generator=generator(0, "tokens")).to(run.device)
    torch.cuda.reset_peak_memory_stats(run.device)
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [torch.cuda.max_memory_allocated(run.device) / 1e9]
