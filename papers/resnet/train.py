"""Train residual and plain networks on CIFAR-10 and MNIST, and the ImageNet nets."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("resnet")

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import images
from common.data.augment import ImageBatches, normalise
from common.data.stream import ImageStream
from common.fit import fit
from common.metrics import mean_of, mean_over
from common.optim import stages
from common.run import Run
from papers.resnet.config import IMAGENET, Config
from papers.resnet.data import centre_view, mean_image, ten_views, training_view, whole_view
from papers.resnet.model import ResNet

SEEDS = "single"  # one seed after the other; processes share each batch
MEASURED = 1_000  # training images whose responses are taken
CONVERGING = 90.0  # percent: "starts converging (<90 % error)", Section 4.2


class Task(NamedTuple):
    """A data set as the loop needs it.

    Attributes:
        classes, channels: of the images.
        batch: step -> this process's (x (b, channels, h, w), y (b,)).
        evaluate: model -> its final metrics.
    """

    classes: int
    channels: int
    per_epoch: int
    batch: Callable[[int], tuple[Tensor, Tensor]]
    evaluate: Callable[[ResNet], dict[str, float]]


def small(cfg: Config, run: Run) -> Task:
    """Section 4.2: per-pixel mean subtracted, 4 pixels padded, random crop and flip; tested on whole images."""
    read = images.load(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, read.fingerprint)
    every, labels = read.train.to(run.device), read.train_labels.to(run.device)
    chosen = slice(cfg.train_images)
    mean: Tensor | float = 0.0
    if cfg.subtract_mean:  # (h, w, c), 0 to 255
        mean = every[chosen].sum(0, dtype=torch.int64).to(torch.float32) / len(every[chosen])
    batches = ImageBatches(
        every[chosen], labels[chosen], cfg.batch_size, run.seeds[0],
        size=cfg.crop, margin=cfg.margin, flip=cfg.flip, mean=mean, scale=255.0, share=run.share,
        drop_last=cfg.drop_last,
    )  # fmt: skip

    def error(model: ResNet, x: Tensor, y: Tensor) -> float:
        def wrong(part: slice) -> Tensor:
            return model(normalise(x[part], mean, 255.0)).argmax(1) != y[part]

        return 100 * mean_over(run, len(y), 500, wrong).item()

    def evaluate(model: ResNet) -> dict[str, float]:
        n = min(cfg.clean_images, cfg.train_images)
        metrics = {"train_error_clean": error(model, every[:n], labels[:n])}
        metrics["train_accuracy_clean"] = 100 - metrics["train_error_clean"]
        if cfg.train_images < len(every):
            metrics["validation_error"] = error(model, every[cfg.train_images :], labels[cfg.train_images :])
        test, test_labels = read.test[: cfg.test_images], read.test_labels[: cfg.test_images]
        metrics["test_error"] = error(model, test.to(run.device), test_labels.to(run.device))
        metrics["test_accuracy"] = 100 - metrics["test_error"]
        moments = mean_over(
            run, min(MEASURED, n), 100, lambda part: model.responses(normalise(every[part], mean, 255.0))
        )
        spread = (moments[:, 1] - moments[:, 0].square()).clamp_min(0).sqrt()  # of all images, places and channels
        metrics["response_std"] = spread.mean().item()
        return metrics | {f"response_std/{i}": value for i, value in enumerate(spread.tolist(), 1)}

    return Task(10, every.shape[-1], batches.per_epoch, batches, evaluate)


def imagenet(cfg: Config, run: Run) -> Task:
    """Section 3.4: scale and colour jitter, crops and flips; tested on one or ten crops and at several whole scales."""
    open_split = partial(ImageStream, cfg.dataset, data_dir=run.data_dir)
    shorter = round(cfg.crop * 256 / 224)
    train = open_split(
        "train", n=cfg.train_images, batch_size=cfg.batch_size, seed=run.seeds[0], share=run.share,
        view=training_view(cfg.crop, cfg.scales, cfg.colour),
    )  # fmt: skip
    run.read(cfg.dataset, train.fingerprint())
    few = open_split("train", n=cfg.mean_images, batch_size=80, view=centre_view(cfg.crop, shorter))
    mean = mean_image(few).to(run.device)

    test = partial(open_split, "validation", n=cfg.test_images)
    tests = {  # whole images differ in shape: one at a time
        "1-crop": lambda: [test(batch_size=80, view=centre_view(cfg.crop, shorter))],
        "10-crop": lambda: [test(batch_size=80, view=ten_views(cfg.crop, shorter))],
        "multi-scale": lambda: [test(batch_size=1, view=whole_view(scale)) for scale in cfg.test_scales],
    }
    streams = {view: tests[view]() for view in cfg.test_views}  # opened now: what is missing shows before training

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = train(step)
        return normalise(x.to(run.device), mean, 255.0), y.to(run.device)

    def wrong(model: ResNet, scales: Sequence[ImageStream]) -> Iterator[Tensor]:
        """Whether the first guess, and whether all of the first five, are wrong: (2, b) of each batch."""
        for batches in zip(*(stream.once(*run.part) for stream in scales), strict=True):
            y = batches[0][1].to(run.device)
            scores = torch.stack([scores_of_views(model, x.to(run.device), mean) for x, _ in batches]).mean(0)
            hit = scores.topk(5).indices == y[:, None]
            yield torch.stack([~hit[:, 0], ~hit.any(1)])

    def evaluate(model: ResNet) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for view, scales in streams.items():
            errors = 100 * mean_of(run, wrong(model, scales), cfg.test_images)
            metrics |= {f"top{k}_error/{view}": e for k, e in zip((1, 5), errors.tolist(), strict=True)}
        return metrics

    return Task(1000, 3, train.per_epoch, batch, evaluate)


def scores_of_views(model: ResNet, x: Tensor, mean: Tensor) -> Tensor:
    """Class probabilities averaged over the views of each image, (b, views, h, w, 3) -> (b, classes)."""
    if x.shape[2:4] != mean.shape[:2]:
        mean = mean.mean((0, 1))  # whole images: the mean colour
    return model(normalise(x.flatten(0, 1), mean, 255.0)).softmax(1).view(*x.shape[:2], -1).mean(1)


class TrainingError:
    """Loss and error of the training batches, as Figure 6 draws them, and the warm-up rule that reads them.

    Every sum is of the global batches and the same on every process, so a checkpoint restores it anywhere.
    """

    def __init__(self, cfg: Config, run: Run, per_epoch: int) -> None:
        self.cfg, self.run = cfg, run
        self.log_every = max(1, cfg.train_steps // 100)
        self.last = max(1, min(per_epoch, cfg.train_steps // 10))  # steps whose mean is the final training error
        self.drops = stages(cfg.lr_drops, [0.1**i for i in range(len(cfg.lr_drops) + 1)])
        self.state = {
            "since_log": torch.zeros(2, device=run.device),  # sums of loss and error
            "window": torch.zeros(2, device=run.device),
            "last": torch.zeros(2, device=run.device),
            "reached": torch.full((2,), -1),  # step at which the error fell below CONVERGING, and below warmup_error
        }

    def multiplier(self, step: int) -> float:
        """Of the learning rate."""
        warming = self.cfg.warmup_lr > 0 and self.state["reached"][1] < 0
        return self.cfg.warmup_lr / self.cfg.lr if warming else self.drops(step)

    def add(self, step: int, loss: Tensor, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Take a batch in; the means since the last log line where one is due."""
        error = 100 * (logits.argmax(1) != y).float().mean()
        both = self.run.mean(torch.stack([loss, error]))
        for name in ("since_log", "window", "last"):
            if name != "last" or step >= self.cfg.train_steps - self.last:
                self.state[name] += both
        if (step + 1) % self.cfg.error_window == 0:
            if self.state["reached"].min() < 0:
                mean = self.state["window"][1].item() / self.cfg.error_window
                for i, level in enumerate((CONVERGING, self.cfg.warmup_error)):
                    if self.state["reached"][i] < 0 and mean < level:
                        self.state["reached"][i] = step + 1
            self.state["window"].zero_()
        if step % self.log_every and step != self.cfg.train_steps - 1:
            return {}
        shown = self.state["since_log"] / ((step - 1) % self.log_every + 1 if step else 1)
        self.state["since_log"].zero_()
        return {"train_loss": shown[0], "train_error": shown[1]}

    def final(self) -> dict[str, float]:
        """A level that was not reached counts as the last step."""
        loss, error = (self.state["last"] / self.last).tolist()
        reached = [float(step if step >= 0 else self.cfg.train_steps) for step in self.state["reached"].tolist()]
        metrics = {"train_loss": loss, "train_error": error, "converging_steps": reached[0]}
        return metrics | ({"warmup_steps": reached[1]} if self.cfg.warmup_lr else {})


def train(cfg: Config, run: Run) -> None:
    """Train with one seed and measure the last iterate, once."""
    task = imagenet(cfg, run) if cfg.dataset == IMAGENET else small(cfg, run)
    shortcut = None if cfg.shortcut == "none" else cfg.shortcut
    model = ResNet(cfg.depth, cfg.family, shortcut, task.classes, task.channels, cfg.group or None)
    model.initialise(run.seeds[0], cfg.initial)
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    options: dict[str, Any] = {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "fused": True}
    optimizer: torch.optim.Optimizer = (  # all parameters decay, as in Caffe
        torch.optim.Adam(model.parameters(), **options)
        if cfg.optimizer == "adam"
        else torch.optim.SGD(model.parameters(), momentum=cfg.momentum, **options)
    )
    errors = TrainingError(cfg, run, task.per_epoch)

    def loss(net: torch.nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        logits = net(x)
        value = F.cross_entropy(logits, y)
        return value, errors.add(step, value.detach(), logits.detach(), y)

    fit(
        run, model, optimizer, task.batch, loss, cfg.train_steps,
        schedule=errors.multiplier, log_every=errors.log_every, state={"errors": errors.state},
    )  # fmt: skip
    run.finish([errors.final() | task.evaluate(model.eval())])
