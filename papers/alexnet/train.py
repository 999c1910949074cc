"""Train the CIFAR-10 nets of Section 3.3, the pair of Figure 1, the ImageNet net, or a small one on MNIST."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("alexnet")

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data import images
from common.data.augment import ImageBatches, normalise
from common.data.stream import ImageStream
from common.errors import UserError
from common.fit import fit
from common.initial import torch_default
from common.metrics import mean_of, mean_over
from common.optim import Schedule, stages
from common.random import generator
from common.run import Run
from papers.alexnet.config import Config
from papers.alexnet.data import SIDE, FileBatches, Statistics, random_crop, resized, square, statistics, ten_views
from papers.alexnet.model import AlexNet, CifarNet, MnistNet, Nets, initialise

SEEDS = "single"  # one seed after the other; processes share each batch


def train(cfg: Config, run: Run) -> None:
    """Train, and leave the metrics of the last iterate on the test split.

    Raises:
        UserError: a start or an optimiser that belongs to another net.
    """
    own = ("torch", "adam") if cfg.net == "mnist" else ("normal", "sgd")
    if (cfg.initial, cfg.optimizer) != own:
        raise UserError(f"--net {cfg.net} has --initial {own[0]} and --optimizer {own[1]}")
    {"cifar": train_cifar, "imagenet": train_imagenet, "mnist": train_mnist}[cfg.net](cfg, run)


def make_optimizer(cfg: Config, nets: Sequence[CifarNet | AlexNet]) -> torch.optim.SGD:
    """v <- momentum v - lr (weight_decay w + gradient), w <- w + v (Section 5); biases have a step of their own."""
    groups: list[dict[str, Any]] = []
    for net, lr in zip(nets, cfg.lr, strict=True):
        for layer, decay in zip(net.layers, cfg.weight_decay, strict=True):
            groups.append({"params": [layer.weight], "lr": lr, "weight_decay": decay})
        biases = [layer.bias for layer in net.layers]
        constant = not cfg.bias_lr_falls
        groups.append({"params": biases, "lr": lr * cfg.bias_lr, "weight_decay": 0.0, "constant": constant})
    return torch.optim.SGD(groups, momentum=cfg.momentum, fused=True)


def keep_velocity(optimizer: torch.optim.SGD, schedule: Schedule) -> Callable[[int], None]:
    """After each step: the paper's v has lr inside, torch's buffer has not, so where lr falls the buffer grows."""

    def after(step: int) -> None:
        now, later = schedule(step), schedule(step + 1)
        if now != later:
            for group in optimizer.param_groups:
                for p in group["params"] if not group.get("constant") else ():
                    optimizer.state[p]["momentum_buffer"].mul_(now / later)

    return after


# ---- CIFAR-10


def train_cifar(cfg: Config, run: Run) -> None:
    """The four-layer nets, on a set that lies on the device; several nets side by side where Figure 1 compares them."""
    if run.device.type == "cpu":
        torch.set_num_threads(1)  # at this size a second thread gains less than another run does
    pictures = images.load(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, pictures.fingerprint)
    seed = run.seeds[0]
    stats = statistics(pictures.train[: cfg.statistics_images].split(1_000))
    stats = Statistics(*(t.to(run.device) for t in (stats.mean, stats.sds, stats.components)))
    batches = FileBatches(
        pictures.train[: cfg.train_images].to(run.device),
        pictures.train_labels[: cfg.train_images].to(run.device),
        stats,
        seed=seed,
        batch_size=cfg.batch_size,
        data_batch=cfg.data_batch,
        stage_epochs=cfg.stage_epochs,
        stage_files=cfg.stage_files,
        size=cfg.size,
        augment=cfg.augment,
        colour=cfg.colour,
        shuffle=cfg.shuffle,
        share=run.share,
    )
    members = [CifarNet(cfg.maps, cfg.lrn, cfg.pool, a, cfg.size) for a in cfg.activations]
    for net in members:  # side by side from the same weights
        initialise(net.layers, cfg.init_sd, cfg.init_bias, generator(seed, "init"))
    nets = Nets(members).to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(cfg, members), stages(batches.ends, cfg.stage_lr)
    steps = batches.ends[-1]
    # share of wrong answers, as each image was trained on, in every visit of a file: what cuda-convnet prints
    errors = torch.zeros(steps // batches.per_file, len(nets), device=run.device)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        logits = model(x)  # (nets, b, 10)
        value = F.cross_entropy(logits.flatten(0, 1).float(), y.repeat(len(nets)))
        visit, (_, begin, end) = step // batches.per_file, batches.place(step)
        wrong = run.mean((logits.detach().argmax(-1) != y).float().mean(1))
        errors[visit] += wrong * ((end - begin) / cfg.data_batch)
        shown = {"train_loss": value, **named("train_error", 100 * (errors[visit - 1] if visit else wrong))}
        return value * len(nets), shown

    def named(metric: str, values: Tensor) -> dict[str, Tensor]:
        """One value per net: by its own name where there is one, else with the activation's."""
        names = [metric] if len(nets) == 1 else [f"{metric}_{a}" for a in cfg.activations]
        return dict(zip(names, values, strict=True))

    fit(
        run,
        nets,
        optimizer,
        batches,
        loss,
        steps,
        schedule=schedule,
        log_every=max(1, steps // 100),
        state={"errors": errors},
        after_step=keep_velocity(optimizer, schedule),
    )
    metrics = named("train_error", 100 * errors[-cfg.stage_files[-1] :].mean(0))
    if cfg.target_error:
        metrics |= named("epochs_to_target", epochs_to(cfg.target_error / 100, errors, cfg))
        if len(nets) == 2:
            metrics["speedup"] = (
                metrics[f"epochs_to_target_{cfg.activations[1]}"] / (metrics[f"epochs_to_target_{cfg.activations[0]}"])
            )
    test, labels = (t[: cfg.test_images].to(run.device) for t in (pictures.test, pictures.test_labels))
    mean = batches.mean

    @torch.no_grad()
    def values(chosen: slice) -> Tensor:
        views = ten_views(test[chosen], cfg.size)
        logits = nets(normalise(views.flatten(0, 1), mean)).float().unflatten(1, views.shape[:2])  # (nets, 10, b, 10)
        p, y = logits.softmax(-1), labels[chosen]
        average, centre = p.mean(1), p[:, 0]
        nll = -average.gather(-1, y.expand(len(nets), -1)[..., None])[..., 0].log()
        return torch.stack((100 * (average.argmax(-1) != y), 100 * (centre.argmax(-1) != y), nll))

    nets.eval()
    found = mean_over(run, len(test), 50, values)  # (3, nets)
    for name, value in zip(("test_error", "test_error_1view", "test_nll"), found, strict=True):
        metrics |= named(name, value)
    run.finish([{name: float(value) for name, value in metrics.items()}])


def epochs_to(target: float, errors: Tensor, cfg: Config) -> Tensor:
    """Epochs until a file's training error is first at or below the target, (visits, nets) -> (nets,); nan if never."""
    reached = errors <= target
    first = reached.int().argmax(0).double() + 1
    return torch.where(reached.any(0), first / cfg.stage_files[0], torch.nan)


# ---- ImageNet


def train_imagenet(cfg: Config, run: Run) -> None:
    """The eight-layer net, on a set that is streamed."""
    seed, (_, world) = run.seeds[0], run.part

    def total(x: Tensor) -> Tensor:
        return run.accelerator.reduce(x, reduction="sum") if world > 1 else x

    whole = ImageStream(cfg.dataset, "train", run.data_dir, cfg.statistics_images, 64, lambda i, _: square(i))
    stats = statistics((x for x, _ in whole.once(*run.part)), run.device, total, (SIDE, SIDE, 3))
    test = ImageStream(cfg.dataset, cfg.test_split, run.data_dir, cfg.test_images, 16, lambda i, _: square(i))
    stream = ImageStream(
        cfg.dataset,
        "train",
        run.data_dir,
        cfg.train_images,
        cfg.batch_size,
        lambda i, rng: random_crop(i, rng, cfg.size),
        seed=seed if cfg.shuffle else None,
        share=run.share,
    )
    run.read(cfg.dataset, stream.fingerprint())
    model = AlexNet(cfg.maps, cfg.groups, cfg.lrn, cfg.pool, hidden=cfg.hidden)
    initialise(model.layers, cfg.init_sd, cfg.init_bias, generator(seed, "init"))
    model = model.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(cfg, [model])
    ends = [epochs * stream.per_epoch for epochs in accumulate(cfg.stage_epochs)]
    schedule, mean = stages(ends, cfg.stage_lr), stats.centre(cfg.size)

    def batch(step: int) -> tuple[Tensor, Tensor | None, Tensor]:
        x, y = (t.to(run.device, non_blocking=True) for t in stream(step))
        numbers, b = generator(seed, "noise", step), cfg.batch_size
        noise = run.share(torch.randn(b, 3, generator=numbers)).to(run.device)
        keep = None
        if cfg.dropout:
            keep = run.share(torch.rand(b, 2 * model.hidden, generator=numbers) < 0.5).to(run.device)
        return normalise(x, mean - cfg.colour * stats.colour(noise)), keep, y

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], _: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, keep, y = batch
        logits = model(x, keep).float()
        value = F.cross_entropy(logits, y)
        return value, {"train_loss": value, "train_error": 100 * (logits.argmax(-1) != y).float().mean()}

    fit(
        run,
        model,
        optimizer,
        batch,
        loss,
        ends[-1],
        schedule=schedule,
        log_every=max(1, ends[-1] // 100),
        after_step=keep_velocity(optimizer, schedule),
    )
    model.eval()

    def wrong() -> Iterator[Tensor]:
        for x, y in test.once(*run.part):
            views = ten_views(x.to(run.device), cfg.size)
            p = model(normalise(views.flatten(0, 1), mean)).float().softmax(-1).unflatten(0, views.shape[:2])
            yield torch.cat([top_errors(q, y.to(run.device)) for q in (p.mean(0), p[0])])

    errors = 100 * mean_of(run, wrong(), cfg.test_images)
    names = ("top1_error", "top5_error", "top1_error_1view", "top5_error_1view")
    run.finish([dict(zip(names, errors.tolist(), strict=True))])


def top_errors(p: Tensor, y: Tensor) -> Tensor:
    """Whether a label is not the most, and not among the five most probable classes: (2, b)."""
    hits = p.topk(5, -1).indices == y[:, None]
    return torch.stack((~hits[:, 0], ~hits.any(-1)))


# ---- MNIST


def train_mnist(cfg: Config, run: Run) -> None:
    """DL-LAB's net, on a set that lies on the device; what it prints: each epoch's loss, the last one's accuracy."""
    held, seed = images.load(cfg.dataset, run.data_dir), run.seeds[0]
    run.read(cfg.dataset, held.fingerprint)
    train, test = (resized(x, cfg.size) for x in (held.train[: cfg.train_images], held.test[: cfg.test_images]))
    batches = ImageBatches(
        train.to(run.device), held.train_labels[: cfg.train_images].to(run.device), cfg.batch_size, seed,
        flip=False, mean=127.5, scale=127.5, share=run.share, drop_last=False,
    )  # fmt: skip
    model = MnistNet(cfg.maps, cfg.hidden)
    torch_default(model, generator(seed, "init"))
    model.to(run.device)
    steps = cfg.epochs * batches.per_epoch
    losses = torch.zeros(cfg.epochs, device=run.device)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        keep = torch.rand(cfg.batch_size, 2 * cfg.hidden, generator=generator(seed, "dropout", step)) < 0.5
        logits = model(x, run.share(keep)[: len(x)].to(x.device))
        value = F.cross_entropy(logits, y)
        losses[step // batches.per_epoch] += run.mean(value.detach()) / batches.per_epoch
        return value, {"train_loss": value, "train_error": 100 * (logits.argmax(1) != y).float().mean()}

    fit(
        run, model, torch.optim.Adam(model.parameters(), cfg.lr[0], fused=True), batches, loss, steps,
        log_every=max(1, steps // 100), state={"losses": losses},
    )  # fmt: skip
    model.eval()
    test, labels = test.to(run.device), held.test_labels[: cfg.test_images].to(run.device)

    @torch.no_grad()
    def right(part: slice) -> Tensor:
        return model(normalise(test[part], 127.5, 127.5)).argmax(1) == labels[part]

    metrics = {f"train_loss/epoch{epoch}": value for epoch, value in enumerate(losses.tolist(), 1)}
    metrics["test_accuracy"] = 100 * mean_over(run, len(test), 500, right).item()
    run.finish([metrics | {"test_error": 100 - metrics["test_accuracy"]}])
