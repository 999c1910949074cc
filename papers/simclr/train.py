"""Train an encoder by contrast, then a linear classifier on what it gives; a supervised baseline alone."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("simclr")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data import images
from common.data.batches import Batches
from common.errors import UserError
from common.fit import fit, stop_unless_finite
from common.initial import torch_default
from common.metrics import mean_over
from common.optim import Schedule, half_cosine
from common.random import generator
from common.run import Run
from papers.simclr import digits
from papers.simclr.augment import Style, Views, to_channels_last, to_rows
from papers.simclr.config import Config
from papers.simclr.lars import LARS
from papers.simclr.model import Encoder, Net, nearest, nt_xent, projection

SEEDS = "single"  # one seed after the other; processes share each batch
EVALUATED = 500  # pictures encoded at a time
CLASSES = 10
STYLE: dict[str, Style] = {"google": "google", "lightly": "torchvision"}  # of crops and colours
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of lightly's pixels; the code leaves them in [0, 1]


def build(cfg: Config) -> Net:
    encoder = Encoder(cfg.depth, cfg.width, "cifar", cfg.dialect)
    if cfg.objective == "supervised":
        return Net(encoder, nn.Linear(encoder.dim, CLASSES))
    head = projection(cfg.head, encoder.dim, cfg.projection, cfg.head_layers, cfg.dialect)
    return Net(encoder, head, apart=cfg.dialect == "lightly")


def make_optimizer(cfg: Config, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if cfg.optimizer == "adam":
        return torch.optim.Adam(parameters, cfg.peak_lr, weight_decay=cfg.weight_decay, fused=True)
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(parameters, cfg.peak_lr, momentum=0.9, weight_decay=cfg.weight_decay, fused=True)
    weights = {"params": [p for p in parameters if p.ndim > 1]}
    others = {"params": [p for p in parameters if p.ndim == 1], "adapt": False}  # gains and biases
    return LARS([weights, others], cfg.peak_lr, momentum=0.9, weight_decay=cfg.weight_decay)


def schedule(cfg: Config, per_epoch: int) -> Schedule:
    """Multiplier of lr: linear from 0 at the first step, then half a cosine; lightly's falls once an epoch."""
    steps, warmup = cfg.train_steps, cfg.warmup_steps

    def at(step: int) -> float:
        if step < warmup:
            return step / warmup
        if cfg.dialect == "lightly":
            step -= step % per_epoch
        return half_cosine(step - warmup, max(1, steps - warmup))

    return at


def load(cfg: Config, run: Run) -> images.Images:
    """The data set.

    Raises:
        UserError: it is not square, of ten classes, as colourful as the net wants it, or too small.
    """
    read = images.load(cfg.dataset, run.data_dir)
    n, h, w, c = read.train.shape
    wanted, colours = (3, "three colours") if cfg.experiment == "resnet" else (1, "one colour")
    if h != w or c != wanted or int(read.train_labels.max()) >= CLASSES:
        raise UserError(f"{cfg.dataset} has pictures of {h}x{w}x{c}; squares of {colours} in ten classes are wanted")
    if n < cfg.train_images or len(read.test) < cfg.test_images:
        raise UserError(
            f"{cfg.dataset} has {n} training and {len(read.test)} test pictures, fewer than the preset states"
        )
    run.read(cfg.dataset, read.fingerprint)
    return read


class Pictures:
    """A labelled split on the device, and how the net sees it."""

    def __init__(self, cfg: Config, run: Run, pixels: Tensor, labels: Tensor, n: int) -> None:
        self.pixels, self.labels = to_rows(pixels[:n]).to(run.device), labels[:n].to(run.device)
        self.run, self.normalised = run, cfg.dialect == "lightly"
        self.mean, self.sd = (torch.tensor(v, device=run.device).view(3, 1, 1) for v in (MEAN, SD))

    def seen(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sd if self.normalised else x

    def whole(self, chosen: slice) -> Tensor:
        return self.seen(to_channels_last(self.pixels[chosen].to(torch.float32) / 255))


class Probe(nn.Module):
    """Linear classifiers that start at zero, on h and on z = g(h); each learns by itself."""

    def __init__(self, model: Net, projected: int) -> None:
        super().__init__()
        self.on_h, self.on_z = nn.Linear(model.encoder.dim, CLASSES), nn.Linear(projected, CLASSES)
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """-> (2, b, classes)"""
        return torch.stack([self.on_h(h), self.on_z(z)])


def train(cfg: Config, run: Run) -> None:
    """Pre-train, freeze the encoder, train the classifier; the test split is looked at once, at the end."""
    {"resnet": pretrain_resnet, "digits": pretrain_digits}[cfg.experiment](cfg, run)


def pretrain_digits(cfg: Config, run: Run) -> None:
    """Ropedia Academy's small net; its encoder and an untrained one are probed with a few labels."""
    if cfg.objective != "contrastive":
        raise UserError("--experiment digits is contrastive; it has no supervised baseline")
    read = load(cfg, run)
    n, m, seed, steps = cfg.train_images, cfg.test_images, run.seeds[0], cfg.train_steps
    ink = float(read.train.max())  # 16 levels in scikit-learn's digits

    def pixels(images: Tensor) -> Tensor:
        x = (images / ink).permute(0, 3, 1, 2)
        return x.to(run.device, memory_format=torch.channels_last)

    seen, test = pixels(read.train[:n]), pixels(read.test[:m])
    net, untrained = digits.Net(cfg.projection), digits.Net(cfg.projection)
    for model, purpose in ((net, "initialise"), (untrained, "untrained")):
        torch_default(model, generator(seed, purpose))  # which the code leaves alone
        model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = torch.zeros((), device=run.device)

    def batch(step: int) -> Tensor:
        """Both views of pictures drawn with replacement (code)."""
        draw = generator(seed, "batch", step)
        x = seen[torch.randint(n, (cfg.batch_size,), generator=draw).to(run.device)]
        views = torch.stack([digits.view(x, digits.drawn(x.shape, draw)) for _ in range(2)])
        return run.share(views, 1).flatten(0, 1)

    def loss(model: nn.Module, x: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value, accuracy = nt_xent(model(x), cfg.temperature, cfg.normalised)
        if step == steps - 1:
            last.copy_(run.mean(value.detach()))  # one batch's, before its update (code)
        return value, {"train_loss": value, "train_accuracy": 100 * accuracy}

    fit(
        run, net, make_optimizer(cfg, net), batch, loss, steps, log_every=max(1, steps // 100), state={"last": last},
        schedule=lambda step: half_cosine(step, max(1, steps - 1), floor=0.1),
    )  # fmt: skip

    chosen = digits.labelled(n, cfg.linear_labels, cfg.linear_draws)
    labels, test_labels = read.train_labels[chosen].to(run.device), read.test_labels[:m].to(run.device)
    metrics = {"train_loss": float(last)}
    for name, model in (("probe_accuracy", net), ("probe_accuracy_random", untrained)):
        with torch.no_grad():
            h, h_test = model.encoder(seen)[chosen.to(run.device)], model.encoder(test)
        probes = digits.probe(h, labels, CLASSES, cfg.linear_lr, cfg.linear_steps, (seed, name))
        metrics[name] = digits.accuracy(probes, h_test, test_labels)
    run.finish([metrics])


def pretrain_resnet(cfg: Config, run: Run) -> None:
    """The paper's experiments."""
    read = load(cfg, run)
    seen = Pictures(cfg, run, read.train, read.train_labels, cfg.train_images)
    seed, contrastive = run.seeds[0], cfg.objective == "contrastive"
    views = Views(
        seen.pixels, seed, STYLE[cfg.dialect], views=2 if contrastive else 1, crop=cfg.crop, strength=cfg.strength,
        jitter=cfg.jitter, grey=cfg.grey, blur=cfg.blur, brightness=cfg.brightness,
    )  # fmt: skip
    batches = Batches(len(seen.pixels), cfg.batch_size, [seed])

    model = build(cfg)
    model.initialise(seed, cfg.dialect)
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(cfg, model)
    net = run.wrapped(model)
    rate = schedule(cfg, batches.per_epoch)
    linear = Linear(cfg, run, model, seen, seed)
    counted = max(1, min(batches.per_epoch, cfg.train_steps // 10))  # last updates whose mean is reported
    sums = torch.zeros(2, device=run.device)  # of loss and accuracy
    state = {"model": model, "optimizer": optimizer, "probe": linear.probe, "probe_optimizer": linear.optimizer}
    total = cfg.train_steps + cfg.linear_steps
    for step in run.steps(total, state | {"sums": sums}):
        if step >= cfg.train_steps:
            linear.update(step - cfg.train_steps, step)
            continue
        model.train()
        index, epoch = run.share(batches.index(step)[0]), step // batches.per_epoch
        x = seen.seen(views(index, epoch))
        if contrastive:
            loss, accuracy = nt_xent(net(x), cfg.temperature, cfg.normalised)
        else:
            logits, y = net(x), seen.labels[index.to(run.device)]
            loss, accuracy = F.cross_entropy(logits, y), (logits.detach().argmax(1) == y).float().mean()
        for group in optimizer.param_groups:
            group["lr"] = cfg.peak_lr * rate(step)
        optimizer.zero_grad(set_to_none=True)
        # the code adds both directions up where the paper takes the mean over all views: twice the value
        run.accelerator.backward(2 * loss if contrastive and cfg.dialect == "google" else loss)
        stop_unless_finite(run, step, loss, model, optimizer, step % max(1, cfg.train_steps // 100) == 0)
        optimizer.step()
        run.average_buffers(model)
        both = run.mean(torch.stack([loss.detach(), 100 * accuracy]))
        if step >= cfg.train_steps - counted:
            sums += both
        if step % max(1, cfg.train_steps // 100) == 0 or step == cfg.train_steps - 1:
            run.log(step, train_loss=both[0], train_accuracy=both[1], lr=optimizer.param_groups[0]["lr"])

    metrics = dict(zip(("train_loss", "train_accuracy"), (sums / counted).tolist(), strict=True))
    test = Pictures(cfg, run, read.test, read.test_labels, cfg.test_images)
    model.eval()
    if contrastive:
        run.finish([metrics | linear.evaluate(test)])
        return

    @torch.no_grad()
    def correct(chosen: slice) -> Tensor:
        with run.accelerator.autocast():
            return model(test.whole(chosen)).argmax(1) == test.labels[chosen]

    run.finish([metrics | {"test_accuracy": 100 * float(mean_over(run, len(test.labels), EVALUATED, correct))}])


class Linear:
    """The second phase: linear classifiers on the frozen encoder (B.6), and its nearest neighbours at the end."""

    def __init__(self, cfg: Config, run: Run, model: Net, seen: Pictures, seed: int) -> None:
        self.cfg, self.run, self.model, self.seen = cfg, run, model, seen
        projected = model.encoder.dim if cfg.head == "none" else cfg.projection
        self.probe = Probe(model, projected).to(run.device)
        self.lr = cfg.linear_lr * cfg.linear_batch_size / 256
        self.optimizer = torch.optim.SGD(self.probe.parameters(), self.lr, momentum=0.9, nesterov=True)
        self.views = Views(seen.pixels, seed, STYLE[cfg.dialect], views=1, jitter=0.0, grey=0.0, purpose="linear views")
        self.batches = Batches(len(seen.pixels), cfg.linear_batch_size, [seed])
        self._bank: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """h and z, by running statistics."""
        self.model.eval()
        with self.run.accelerator.autocast():
            h = self.model.encoder(x)
            return h.float(), self.model.head(h).float()

    @property
    def bank(self) -> tuple[Tensor, Tensor]:
        """h and z of all whole training pictures; every process makes them."""
        if self._bank is None:
            parts = range(0, len(self.seen.labels), EVALUATED)
            made = [self.encode(self.seen.whole(slice(start, start + EVALUATED))) for start in parts]
            self._bank = torch.cat([h for h, _ in made]), torch.cat([z for _, z in made])
        return self._bank

    def update(self, step: int, shown_as: int) -> None:
        """One update of both classifiers."""
        cfg, run = self.cfg, self.run
        index = run.share(self.batches.index(step)[0])
        here = index.to(run.device)
        if cfg.linear_crops:
            h, z = self.encode(self.seen.seen(self.views(index, step // self.batches.per_epoch)))
        else:
            h, z = (features[here] for features in self.bank)
        logits = self.probe(h, z)
        y = self.seen.labels[here]
        losses = torch.stack([F.cross_entropy(each, y) for each in logits])
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        for p in self.probe.parameters():
            p.grad = run.mean(p.grad)  # type: ignore[arg-type]
        logged = step % max(1, cfg.linear_steps // 50) == 0
        stop_unless_finite(run, shown_as, losses, self.probe, self.optimizer, logged)
        self.optimizer.param_groups[0]["lr"] = self.lr * half_cosine(step, cfg.linear_steps)
        self.optimizer.step()
        if logged or step == cfg.linear_steps - 1:
            accuracy = 100 * (logits.detach()[0].argmax(1) == y).float().mean()
            shown = run.mean(torch.stack([losses.detach()[0], accuracy]))
            run.log(shown_as, linear_train_loss=shown[0], linear_train_accuracy=shown[1])

    def evaluate(self, test: Pictures) -> dict[str, float]:
        """Accuracy on the test pictures: of both classifiers, and of the nearest training pictures."""
        cfg, labels = self.cfg, self.seen.labels
        bank = F.normalize(self.bank[0], dim=1)

        def correct(chosen: slice) -> Tensor:
            h, z = self.encode(test.whole(chosen))
            near = nearest(F.normalize(h, dim=1), bank, labels, CLASSES, cfg.neighbours, cfg.neighbour_temperature)
            return torch.cat([self.probe(h, z).argmax(-1), near[None]]) == test.labels[chosen]

        found = 100 * mean_over(self.run, len(test.labels), EVALUATED, correct)
        return dict(zip(("linear_accuracy", "linear_accuracy_z", "knn_accuracy"), found.tolist(), strict=True))
