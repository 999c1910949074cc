"""Train a translation model or a language model; or measure the small claims of Section 3 and Table 1."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("transformer")

import json
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from common.cost import parameters
from common.data.text import TokenBatches, Windows, bleu, tokenised_bleu
from common.errors import UserError
from common.fit import fit, stop_unless_finite
from common.optim import decay_groups, half_cosine
from common.random import generator, integer
from common.run import Run
from papers.transformer import analysis, data
from papers.transformer.audit import build
from papers.transformer.config import Config
from papers.transformer.data import BOS, EOS, UNKNOWN, Corpus, Split
from papers.transformer.model import PAD, Transformer
from papers.transformer.search import RULES, translate

SEEDS = "single"  # one seed after the other; processes share each batch
SHOWN = 24  # tokens in a picture of attention


def train(cfg: Config, run: Run) -> None:
    """Carry out the experiment a configuration names."""
    for right, what in (
        (cfg.width % 2 == 0, "width is odd: sines and cosines come in pairs; choose an even one"),
        (cfg.warmup_steps > 0 or cfg.schedule not in ("noam", "inverse-sqrt"), f"{cfg.schedule} needs warmup_steps"),
        (min(cfg.layers, cfg.heads, cfg.beams, cfg.batches) > 0, "layers, heads, beams and batches begin at 1"),
        ((cfg.units == "characters") == (cfg.experiment == "language"), "units characters go with language, and only"),
    ):
        if not right:
            raise UserError(what)
    {"translation": translation, "language": language, "section3": section3}[cfg.experiment](cfg, run)


def schedule(cfg: Config, steps: int) -> Callable[[int], float]:
    """Multiplier of lr at a step, counted from 0."""
    warm = cfg.warmup_steps

    def noam(step: int) -> float:  # Eq. 3, whose steps count from 1
        return cfg.width**-0.5 * min((step + 1) ** -0.5, (step + 1) * warm**-1.5)

    def inverse_sqrt(step: int) -> float:  # fairseq: linear from 1e-7
        return 1e-7 / cfg.lr + (1 - 1e-7 / cfg.lr) * step / warm if step < warm else math.sqrt(warm / step)

    def cosine(step: int) -> float:  # nanoGPT: down to a tenth
        if step < warm:
            return (step + 1) / (warm + 1)
        return half_cosine(step - warm, max(1, steps - warm), floor=0.1)

    return {"noam": noam, "inverse-sqrt": inverse_sqrt, "cosine": cosine, "constant": lambda step: 1.0}[cfg.schedule]


def make_optimizer(cfg: Config, model: Transformer) -> torch.optim.Optimizer:
    groups = decay_groups(model, cfg.weight_decay)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, cfg.beta2), eps=cfg.adam_epsilon, fused=True)


class Snapshots:
    """The weights of the last few moments, in a ring, for their average (Section 6.1)."""

    def __init__(self, model: Transformer, keep: int, device: torch.device) -> None:
        size = parameters(model) if keep else 0
        self.state = {"ring": torch.zeros(keep, size, device=device), "taken": torch.zeros((), dtype=torch.long)}

    @torch.no_grad()
    def take(self, model: Transformer) -> None:
        ring, taken = self.state["ring"], self.state["taken"]
        ring[int(taken) % len(ring)] = parameters_to_vector(model.parameters())
        taken += 1

    @torch.no_grad()
    def load_mean(self, model: Transformer) -> None:
        """Give a model the mean of the snapshots there are; its own weights stay where there are none."""
        ring = self.state["ring"][: int(self.state["taken"])]
        if len(ring):
            vector_to_parameters(ring.mean(0), model.parameters())


# ---- translation


def summed_loss(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy summed over the real tokens; the label keeps 1 - smoothing and its part of the rest (5.4)."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), target.flatten(), ignore_index=PAD, reduction="sum", label_smoothing=smoothing
    )


class Measure:
    """Loss, perplexity and scores of a model on the splits of a corpus, shared among the processes."""

    def __init__(self, cfg: Config, run: Run, corpus: Corpus, bos: int) -> None:
        self.cfg, self.run, self.corpus, self.bos = cfg, run, corpus, bos
        self.batches: dict[str, TokenBatches] = {}

    @torch.no_grad()
    def losses(self, model: Transformer, label: str) -> tuple[float, float]:
        """Per token: the smoothed loss, and the plain negative log-likelihood."""
        run, split = self.run, self.corpus.splits[label]
        if label not in self.batches:
            self.batches[label] = TokenBatches(
                split.source, split.target, self.cfg.batch_tokens, 0, bos=self.bos, eos=EOS, part=run.part,
                device=run.device, shuffle=False,
            )  # fmt: skip
        batches = self.batches[label]
        total, tokens = torch.zeros(2, dtype=torch.float64, device=run.device), 0
        model.eval()
        for i in range(batches.per_epoch):
            batch = batches(i)
            with run.accelerator.autocast():
                logits = model(batch.source, batch.target_in)
            for j, smoothing in enumerate((self.cfg.label_smoothing, 0.0)):
                total[j] += summed_loss(logits, batch.target_out, smoothing)
            tokens += batch.tokens
        model.train()
        smoothed, plain = (run.mean(total) * run.part[1] / tokens).tolist()
        return smoothed, plain

    def translations(self, model: Transformer, split: Split) -> list[str]:
        """Words of every sentence, in the order of the split."""
        run, cfg = self.run, self.cfg
        rank, world = run.part
        with run.accelerator.autocast():
            mine = translate(
                model, split.source[rank::world], cfg.beams, cfg.length_penalty, RULES[cfg.search], self.bos, EOS,
                run.device,
            )  # fmt: skip
        known = self.corpus.vocabulary  # what fills a dictionary up to a multiple of 8 is no word
        spelt = self.corpus.spell([[i if i < known else UNKNOWN for i in ids] for ids in mine])
        words = list(enumerate(spelt))
        if world > 1:
            words = sorted(gather_object([(rank + i * world, said) for i, said in words]))
        return [said for _, said in words]

    def scores(self, model: Transformer) -> dict[str, float]:
        """Perplexity per token, and BLEU, on every split but the training split."""
        found: dict[str, float] = {}
        for label, split in self.corpus.splits.items():
            if label == "train":
                continue
            said, references = self.translations(model, split), split.references
            if self.run.main:
                (self.run.folder / f"{label}.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
            if self.cfg.split_compounds:
                said, references = ([data.split_compounds(s) for s in side] for side in (said, references))
            found[f"{label}_perplexity"] = math.exp(min(self.losses(model, label)[1], 700.0))
            score = tokenised_bleu(said, references)
            found[f"{label}_bleu"] = score.score
            found |= {f"{label}_bleu_precision{n}": p for n, p in enumerate(score.precisions, 1)}
            found |= {f"{label}_brevity_penalty": score.bp, f"{label}_words": score.sys_len}
            name, value = bleu(said, references, tokenize="none")
            found[f"{label}/{name}"] = value
        return found


def translation(cfg: Config, run: Run) -> None:
    """Train on pairs of sentences, translate the test sets once."""
    seed, (rank, world) = run.seeds[0], run.part
    assert cfg.units != "characters"
    corpus = data.load(cfg.dataset, (cfg.source, cfg.target), cfg.units, cfg.merges, cfg.lowercase, run.data_dir)
    for name, fingerprint in corpus.fingerprints.items():
        run.read(name, fingerprint)
    if corpus.subwords and run.main:
        corpus.subwords.save(run.folder / "subwords.json")
    fairseq = cfg.dialect == "fairseq"
    bos = EOS if fairseq else BOS  # fairseq begins with the end
    model = build(cfg, -(-corpus.vocabulary // 8) * 8 if fairseq else corpus.vocabulary, corpus.source_vocabulary)
    model.initialise(generator(seed, "weights"))
    model.to(run.device)
    pairs = corpus.splits["train"]
    batches = TokenBatches(
        pairs.source, pairs.target, cfg.batch_tokens, seed, bos=bos, eos=EOS, part=run.part, device=run.device,
        rows=8 if fairseq else 1,
    )  # fmt: skip
    per_epoch = -(-batches.per_epoch // cfg.batches)
    total = cfg.epochs * per_epoch or cfg.train_steps
    measure = Measure(cfg, run, corpus, bos)
    optimizer, multiplier = make_optimizer(cfg, model), schedule(cfg, total)
    snapshots = Snapshots(model, 0 if cfg.averaged == 1 else max(1, cfg.averaged), run.device)
    # Lowest validation loss, epochs since, whether that ended training, updates
    progress = torch.tensor([math.inf, 0.0, 0.0, 0.0], dtype=torch.float64)
    state = {"model": model, "optimizer": optimizer, "snapshots": snapshots.state, "progress": progress}
    wrapped = run.wrapped(model)
    model.train()

    for step in run.steps(total, state):
        if progress[2]:
            break
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * multiplier(step)
        torch.manual_seed(integer(seed, "dropout", step, rank))
        epoch, position = divmod(step, per_epoch)
        first, end = epoch * batches.per_epoch + position * cfg.batches, (epoch + 1) * batches.per_epoch
        update = [batches(i) for i in range(first, min(first + cfg.batches, end))]
        tokens = sum(batch.tokens for batch in update)
        logged = step % max(1, total // 100) == 0
        shown = torch.zeros((), device=run.device)
        for batch in update:
            logits = wrapped(batch.source, batch.target_in)
            # Gradients are averaged over the processes: each one's sum counts for the tokens of all
            loss = summed_loss(logits, batch.target_out, cfg.label_smoothing) * (world / tokens)
            if batch is update[-1]:
                run.accelerator.backward(loss)
            else:
                with run.accelerator.no_sync(wrapped):
                    run.accelerator.backward(loss)
            shown += loss.detach()
        stop_unless_finite(run, step, shown, model, optimizer, logged)
        if cfg.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress[3] = step + 1
        if logged or step == total - 1:
            run.log(step, train_loss=run.mean(shown), lr=optimizer.param_groups[0]["lr"])
        if (step + 1) % (cfg.snapshot_steps or per_epoch) == 0:
            smoothed, plain = measure.losses(model, "validation")
            lowest, since = progress[:2].tolist()
            better = smoothed < lowest
            if cfg.averaged > 1 or (cfg.averaged == 0 and better):
                snapshots.take(model)
            since = 0 if better else since + 1
            stops = 0 < cfg.patience_epochs <= since
            progress[:3] = torch.tensor([min(smoothed, lowest), since, stops])
            run.log(step, validation_loss=smoothed, validation_perplexity=math.exp(min(plain, 700.0)))

    snapshots.load_mean(model)
    metrics = {"updates": float(progress[3]), **measure.scores(model)}
    if run.main:
        picture(run, model, corpus, bos)
    run.finish([metrics])


def picture(run: Run, model: Transformer, corpus: Corpus, bos: int) -> None:
    """`attention.png`: every head of the last layers, reading the first test sentence that fits."""
    test = corpus.splits["test"]
    n = next((i for i, s in enumerate(test.source) if len(s) < SHOWN and len(test.target[i]) < SHOWN), 0)
    source, target = test.source[n], test.target[n]
    maps = analysis.attention_maps(
        model,
        torch.tensor([[*source, EOS]], device=run.device),
        torch.tensor([[bos, *target]], device=run.device),
    )
    last = f"{len(model.decoder) - 1}"
    shown = [f"encoder.{last}.self_attention", f"decoder.{last}.self_attention", f"decoder.{last}.cross_attention"]
    rows, columns = ["▸", *corpus.pieces("target", target)], [*corpus.pieces("source", source), "■"]
    path = run.picture("attention", "What each head of the last layers attends to in a test sentence")
    analysis.save_maps(path, maps, rows, columns, shown)


# ---- language


def language(cfg: Config, run: Run) -> None:
    """nanoGPT: predict the next character; the loss on held-out text is estimated on random windows as it goes."""
    seed, rank = run.seeds[0], run.part[0]
    ids, held, characters, fingerprint = data.characters(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, fingerprint)
    ids, held = ids.to(run.device), held.to(run.device)
    model = build(cfg, len(characters))
    model.initialise(generator(seed, "weights"))
    windows = Windows(ids, cfg.context, cfg.batch_size, seed, run.share)
    looks = Windows(held, cfg.context, cfg.batch_size, seed, run.share, "validation")
    estimates = torch.full((-(-cfg.train_steps // cfg.evaluate_steps),), math.inf)

    def nats(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean over the characters of a batch."""
        x, y = batch
        with torch.autocast(run.device.type, torch.bfloat16, enabled=cfg.bfloat16):
            logits = model(None, x)
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())

    def loss(model: torch.nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(integer(seed, "dropout", step, rank))
        value = nats(model, batch)
        return value, {"train_loss": value}

    @torch.no_grad()
    def look(step: int) -> None:
        """After so many updates: the mean over `evaluate_batches` batches of random windows, as nanoGPT prints it."""
        if (step + 1) % cfg.evaluate_steps and step + 1 < cfg.train_steps:
            return
        model.eval()
        number = step // cfg.evaluate_steps
        found = [nats(model, looks(number * cfg.evaluate_batches + i)) for i in range(cfg.evaluate_batches)]
        estimates[number] = float(run.mean(torch.stack(found).mean()))
        model.train()
        run.log(step, validation_loss=float(estimates[number]))

    fit(
        run, model, make_optimizer(cfg, model), windows, loss, cfg.train_steps,
        schedule=schedule(cfg, cfg.train_steps), clip_norm=cfg.clip_norm or None,
        log_every=max(1, cfg.train_steps // 100), state={"estimates": estimates}, after_step=look,
    )  # fmt: skip
    model.eval()
    metrics = {
        "validation_loss": float(estimates[-1]),
        "best_validation_loss": float(estimates.min()),
        "validation_loss_whole": whole_text(held, cfg.context, cfg.batch_size, lambda batch: nats(model, batch)),
    }
    if run.main:
        text = held[None, :SHOWN]
        maps = analysis.attention_maps(model, None, text)
        letters = [repr(characters[i])[1:-1] for i in text[0].tolist()]
        shown = [f"decoder.{i}.self_attention" for i in (0, cfg.layers - 1)]
        path = run.picture("attention", "What each head of the first and last layer attends to in the validation text")
        analysis.save_maps(path, maps, letters, letters, shown)
    run.finish([metrics])


@torch.no_grad()
def whole_text(ids: Tensor, length: int, rows: int, nats: Callable[[tuple[Tensor, Tensor]], Tensor]) -> float:
    """Mean loss of every token of a text but the first, read in windows one after the other; the last may be shorter.

    Args:
        nats: (x, y) -> mean loss of y.
    """
    n = (len(ids) - 1) // length
    x, y = (part[: n * length].view(n, length) for part in (ids[:-1], ids[1:]))
    total = sum(float(nats(b)) * b[1].numel() for b in zip(x.split(rows), y.split(rows), strict=True))
    rest = ids[None, n * length :]
    if rest.shape[1] > 1:
        total += float(nats((rest[:, :-1], rest[:, 1:]))) * (rest.shape[1] - 1)
    return total / (len(ids) - 1)


# ---- Section 3 and Table 1


def section3(cfg: Config, run: Run) -> None:
    """Unit claims over random vectors, and how a layer's time grows with the length."""
    run.timed()
    run.wrapped(torch.nn.Identity())
    state = {"found": ""}
    for step in run.steps(1, state):
        found = analysis.measured(run.seeds[0], run.device)
        run.log(step, **found)
        state["found"] = json.dumps(found)
    run.finish([json.loads(state["found"])])
