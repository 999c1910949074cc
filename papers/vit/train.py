"""Train a ViT, a hybrid or the ResNet alone: from scratch, or from pre-trained weights."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("vit")

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import images as image_sets
from common.data.augment import ImageBatches, PerSample, normalise
from common.data.stream import ImageStream
from common.errors import UserError
from common.fit import fit
from common.metrics import mean_of, mean_over
from common.random import generator, integer
from common.run import Run
from papers.vit import analysis, weights
from papers.vit.audit import build
from papers.vit.augment import Augment, mixing, resized
from papers.vit.config import CIFAR, MNIST, Config
from papers.vit.model import ViT

SEEDS = "single"  # one seed after the other; processes share each batch
EVALUATED, SHOWN = 250, 8  # test pictures at a time; those drawn in the run's folder
EPOCHS = 5  # the first ones, whose training accuracy is kept
WHOLE = (CIFAR, MNIST, "local/cifar10-jpeg75", "synthetic/")  # sets that are kept in memory


def schedule(cfg: Config) -> Callable[[int], float]:
    """Multiplier of lr at a step."""
    per_epoch = cfg.per_epoch
    pi = math.pi

    def by_step(step: int) -> float:  # the code's create_learning_rate_schedule (utils.py)
        done = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
        done = min(max(done, 0.0), 1.0)
        decay = 1 - done if cfg.schedule == "linear" else 0.5 * (1 + math.cos(pi * done))
        return decay * min(1.0, step / cfg.warmup_steps) if cfg.warmup_steps else decay

    def compact_transformers(step: int) -> float:  # examples/main.py: 5 epochs at 1/5, 1/4, ... 1, then a cosine
        epoch, warm = step // per_epoch, 5
        return 1 / (warm - epoch) if epoch < warm else 0.5 * (1 + math.cos(pi * (epoch - warm) / (cfg.epochs - warm)))

    def vit_cifar(step: int) -> float:  # GradualWarmupScheduler: 0, 1/5, ... 1, 1, then a cosine of all epochs to 1e-2
        epoch = step // per_epoch
        return epoch / 5 if epoch <= 5 else 0.01 + 0.99 * 0.5 * (1 + math.cos(pi * (epoch - 6) / cfg.epochs))

    def vit_pytorch(step: int) -> float:  # train_cifar10.py calls scheduler.step(epoch - 1) after each epoch
        epoch = step // per_epoch
        return 0.5 * (1 + math.cos(pi * (epoch - 2) / cfg.epochs)) if epoch else 1.0

    others = {
        "compact-transformers": compact_transformers,
        "vit-cifar": vit_cifar,
        "vit-pytorch": vit_pytorch,
        "constant": lambda step: 1.0,
    }
    return others.get(cfg.schedule, by_step)


def make_optimizer(cfg: Config, model: ViT) -> torch.optim.Optimizer:
    parameters = model.parameters()
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=cfg.lr, momentum=0.9, weight_decay=cfg.weight_decay, fused=True)
    kind = torch.optim.Adam if cfg.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)


def cross_entropy(cfg: Config, logits: Tensor, y: Tensor) -> Tensor:
    """With label smoothing, over all classes or over the others alone."""
    share = cfg.label_smoothing
    if cfg.smoothing_spares_label:  # 1 - share for the label: as if spread over all, a little more of it
        share *= cfg.classes / (cfg.classes - 1)
    return F.cross_entropy(logits, y, label_smoothing=share)


def inception(image: PIL.Image.Image, rng: np.random.Generator, size: int) -> np.ndarray:
    """A random 5 to 100 % of the picture, 3/4 to 4/3 as wide as high, at `size`, mirrored half of the time.

    The code's input pipeline (fine-tuning); ten attempts, then the whole picture, as its TensorFlow operation has it.
    """
    box = (0, 0, image.width, image.height)
    for _ in range(10):
        area, ratio = rng.uniform(0.05, 1.0) * image.width * image.height, rng.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= image.width and 0 < h <= image.height:
            left, top = rng.integers(image.width - w + 1), rng.integers(image.height - h + 1)
            box = (int(left), int(top), int(left + w), int(top + h))
            break
    view = np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR, box=box))
    return view[:, ::-1] if rng.random() < 0.5 else view


def squeezed(image: PIL.Image.Image, rng: np.random.Generator, size: int) -> np.ndarray:
    """The whole picture at `size` by `size`, as the code tests."""
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR))


class Whole:
    """A small set on the device: training batches, and test pictures by slice."""

    def __init__(self, cfg: Config, run: Run) -> None:
        self.cfg, self.run, seed, device = cfg, run, run.seeds[0], run.device
        held = image_sets.load(cfg.dataset, run.data_dir)
        run.read(cfg.dataset, held.fingerprint)
        train, labels = held.train[: cfg.train_images].to(device), held.train_labels[: cfg.train_images].to(device)
        self.test, self.test_labels = held.test[: cfg.test_images].to(device), held.test_labels.to(device)
        self.mean, self.sd = (255 * torch.tensor(v, device=device) for v in (cfg.mean, cfg.sd))
        side = train.shape[1]
        if cfg.crop == "none" and (cfg.policy != "none" or cfg.resolution != side):
            raise UserError(f"--crop none leaves pictures as they are: take --policy none and --resolution {side}")
        augment = None
        if cfg.crop != "none":
            augment = Augment(
                PerSample(len(train), seed, device), side, cfg.resolution, cfg.policy, cfg.policy_first, 4,
                cfg.crop == "inception", cfg.randaugment_n, cfg.randaugment_m,
            )  # fmt: skip
        self.mixes = bool(cfg.mixup or cfg.cutmix)
        share: Any = (lambda index: index) if self.mixes else run.share  # partners come from the whole batch
        self.batches = ImageBatches(
            train, labels, cfg.batch_size, seed, flip=False, mean=self.mean, scale=self.sd, share=share,
            transform=augment, drop_last=cfg.drop_last,
        )  # fmt: skip

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """x (b, 3, h, w), labels, the partners' labels, and the partners' share of them."""
        x, y = self.batches(step)
        if not self.mixes:
            return x, y, y, 0.0
        cfg = self.cfg
        partner, share, portion = mixing(len(x), x.shape[-1], self.run.seeds[0], step, cfg.mixup, cfg.cutmix)
        partner, share = partner.to(x.device), share.to(x.device)
        x, other = x + share * (x[partner] - x), y[partner]
        return self.run.share(x), self.run.share(y), self.run.share(other), portion

    def seen(self, chosen: slice) -> Tensor:
        """Test pictures (b, s, s, 3) at the network's resolution, uint8."""
        x, s = self.test[chosen], self.cfg.resolution
        if x.shape[1] == s:
            return x
        whole = torch.full((len(x), 2), float(x.shape[1]), device=x.device)
        return resized(x, torch.zeros_like(whole), whole, s)

    def accuracy(self, correct: Callable[[Tensor, Tensor], Tensor]) -> float:
        """correct(x, y) -> (b,), as a percentage of the test set."""

        def of(chosen: slice) -> Tensor:
            return correct(normalise(self.seen(chosen), self.mean, self.sd), self.test_labels[chosen])

        return 100 * float(mean_over(self.run, len(self.test), EVALUATED, of))


class Streamed:
    """A set of the size of ImageNet: batches decoded ahead by threads."""

    def __init__(self, cfg: Config, run: Run) -> None:
        self.cfg, self.run, size = cfg, run, cfg.resolution
        self.mean, self.sd = (255 * torch.tensor(v, device=run.device) for v in (cfg.mean, cfg.sd))
        self.train = ImageStream(
            cfg.dataset, "train", run.data_dir, cfg.train_images, cfg.batch_size,
            lambda image, rng: inception(image, rng, size), seed=run.seeds[0], share=run.share,
        )  # fmt: skip
        self.test = ImageStream(
            cfg.dataset, "validation", run.data_dir, cfg.test_images, EVALUATED,
            lambda image, rng: squeezed(image, rng, size),
        )  # fmt: skip
        run.read(cfg.dataset, self.train.fingerprint())

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, float]:
        x, y = self.train(step)
        y = y.to(self.run.device)
        return normalise(x.to(self.run.device), self.mean, self.sd), y, y, 0.0

    def accuracy(self, correct: Callable[[Tensor, Tensor], Tensor]) -> float:
        device = self.run.device
        right = (
            correct(normalise(x.to(device), self.mean, self.sd), y.to(device))
            for x, y in self.test.once(*self.run.part)
        )
        return 100 * float(mean_of(self.run, right, self.cfg.test_images))


def train(cfg: Config, run: Run) -> None:
    """Train, evaluate once on the test set, and look at what was learned."""
    seed, rank = run.seeds[0], run.accelerator.process_index
    source = Whole(cfg, run) if cfg.dataset.startswith(WHOLE) else Streamed(cfg, run)
    model = build(cfg)
    model.initialise(generator(seed, "weights"))
    if cfg.weights:
        weights.load(model, (run.data_dir or Path()) / cfg.weights)
    model.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = torch.zeros(EPOCHS, 2, dtype=torch.float64, device=run.device)  # right answers and pictures of an epoch

    def loss(model: torch.nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, other, portion = batch
        torch.manual_seed(integer(seed, "dropout", step, rank))
        logits = model(x)
        value = cross_entropy(cfg, logits, y)
        if portion:
            value = (1 - portion) * value + portion * cross_entropy(cfg, logits, other)
        right = (logits.argmax(1) == y).double()
        if step < EPOCHS * cfg.per_epoch:
            seen[step // cfg.per_epoch] += run.mean(torch.stack([right.sum(), right.new_tensor(len(right))]))
        return value, {"train_loss": value, "train_accuracy": 100 * right.mean().float()}

    fit(
        run, model, make_optimizer(cfg, model), source.batch, loss, cfg.steps,
        schedule=schedule(cfg), clip_norm=cfg.clip_norm or None, log_every=max(1, cfg.steps // 100),
        state={"seen": seen},
    )  # fmt: skip
    model.eval()

    @torch.no_grad()
    def correct(x: Tensor, y: Tensor) -> Tensor:
        with run.accelerator.autocast():
            return (model(x).argmax(1) == y).float()

    metrics = {"test_accuracy": source.accuracy(correct)}
    metrics["test_error"] = 100 - metrics["test_accuracy"]
    for epoch, (right, pictures) in enumerate(seen.tolist(), 1):
        if pictures:
            metrics[f"train_accuracy/epoch{epoch}"] = 100 * right / pictures
    if isinstance(source, Whole):
        metrics |= looked_at(run, model, source)
    run.finish([metrics])


@torch.no_grad()
def looked_at(run: Run, model: ViT, source: Whole) -> dict[str, float]:
    """Metrics of Figure 7 over the first test pictures (their labels play no part), and the pictures."""
    found: dict[str, float] = {}
    mean_distance: Tensor | None = None
    if len(model.blocks) and model.g > 1:

        def of(chosen: slice) -> Tensor:
            x = normalise(source.seen(chosen), source.mean, source.sd)
            return analysis.attention_distance(model, model.attentions(x)).permute(1, 2, 0)

        mean_distance = mean_over(run, min(256, len(source.test)), 64, of)  # (layers, heads)
        for layer, heads in enumerate(mean_distance.tolist(), 1):
            found |= {f"attention_distance/layer{layer}/head{h}": value for h, value in enumerate(heads, 1)}
        found["attention_distance_first_layer"] = float(mean_distance[0].mean())
        found["attention_distance_last_layer"] = float(mean_distance[-1].mean())
        found["attention_distance_first_layer_widest"] = float(mean_distance[0].max())
    if len(model.tables) and model.g > 3:
        found |= analysis.similarity_metrics(model)
    if run.main:
        shown = source.seen(slice(0, SHOWN))
        x = normalise(shown, source.mean, source.sd)
        analysis.save_pictures(run.picture, model, shown, x, mean_distance)
    return found
