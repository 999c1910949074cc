"""Networks that samples are judged by: the papers' Inception, or a small classifier that the project trains itself.

The classifier is a pure function of its recipe, the data and the arithmetic of the machine. Its name has a hash of the
first two and can stand in a claim; its weights' bits cannot be promised (another CPU rounds otherwise, and training
spreads that), so their fingerprint goes into the record of every run they judged. Other bits are like another seed of
the recipe, which moved the Frechet distance of one set of digits from 4.5 to 3.9, their inception score from 8.1 to 8.2
and their recall from 0.18 to 0.22: compare numbers of one fingerprint.

It is trained once per machine and version of torch, on the CPU with one thread whatever the run's device, and kept
below `runs/judges` with a record of its own (test error, data, versions, time), which joins the leaderboard's records
with the first run that is recorded.
"""

import dataclasses
import hashlib
import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from common import checkpoint, machine, records
from common.data import hub, images
from common.data.augment import ImageBatches, normalise
from common.errors import UserError
from common.optim import warmup_cosine
from common.paths import LEADERBOARDS, RUNS
from common.random import generator
from common.run import Run
from common.threads import on_threads

JUDGES = LEADERBOARDS / "judges"  # records of classifiers: no paper's, so they stand apart
INCEPTION = "hngan/webui-models"  # a Hub repository with NVIDIA's TorchScript copy of the network FID is defined by
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


@dataclass(frozen=True)
class Recipe:
    """All that the classifier is made by, besides the data."""

    widths: tuple[int, ...] = (32, 64, 128)  # of 3x3 convolutions with stride 2
    features: int = 128
    epochs: int = 4
    batch_size: int = 128
    lr: float = 1e-3  # Adam's, along half a cosine
    mirror: bool = False
    seed: int = 0


RECIPES = {"cifar10": Recipe(widths=(64, 128, 128), epochs=8, mirror=True)}  # by a part of the data set's name


class Classifier(nn.Module):
    """3x3 convolutions with stride 2, a linear layer to the features and one to the classes."""

    def __init__(self, recipe: Recipe, side: int, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in zip((channels, *recipe.widths), recipe.widths, strict=False):
            layers += [nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
            side = (side + 1) // 2
        full = nn.Linear(side**2 * recipe.widths[-1], recipe.features, bias=False)
        self.layers = nn.Sequential(*layers, nn.Flatten(), full, nn.BatchNorm1d(recipe.features), nn.ReLU())
        self.head = nn.Linear(recipe.features, classes)

    def initialise(self, seed: int) -> None:
        """Every weight from N(0, 2 / fan-in)."""
        for name, p in self.named_parameters():
            if p.ndim > 1:
                p.data.normal_(0, (2 / p[0].numel()) ** 0.5, generator=generator(seed, "classifier", name))
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) in [-1, 1] -> features (b, d), logits (b, classes)."""
        features = self.layers(x)
        return features, self.head(features)


class Trained:
    """The trained classifier as an extractor (`common.judging`).

    Attributes:
        name: `<set>_classifier_<hash of recipe and data>`.
        fingerprint: of the weights.
        error: percent of test pictures it gets wrong.
    """

    def __init__(self, name: str, model: Classifier, error: float, device: torch.device) -> None:
        self.name, self.error = name, error
        self.fingerprint = hub.fingerprint(*(value.numpy() for value in model.state_dict().values()))
        self.model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.model(2 * pictures - 1)
        return features, logits.softmax(1)


def classifier(
    run: Run, dataset: str, folder: Path = RUNS / "judges", data: images.Images | None = None
) -> Trained:  # fmt: skip
    """The classifier of a labelled image set, trained now if this machine has none yet; noted in the run's record.

    Args:
        data: the set itself, where a paper draws it; else it is read by its name.
    """
    recipe = next((recipe for part, recipe in RECIPES.items() if part in dataset), Recipe())
    data = data or images.load(dataset, run.data_dir)
    made_of = json.dumps([dataclasses.asdict(recipe), data.fingerprint])
    name = f"{dataset.split('/')[-1]}_classifier_{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    home = folder / f"{name}-torch{torch.__version__}-{platform.machine()}"
    home.parent.mkdir(parents=True, exist_ok=True)
    _, side, _, channels = data.train.shape
    model, error = Classifier(recipe, side, channels, int(data.train_labels.max()) + 1), torch.zeros(())
    kept = {"model": model, "error": error}
    with FileLock(f"{home}.lock"):  # another run, or another process of this one, may be training it
        try:
            trained_steps, _ = checkpoint.load(home, kept)
        except UserError:  # damaged: anew
            shutil.rmtree(home)
            trained_steps = 0
        if not trained_steps:
            train(model, recipe, data, name, home)
            checkpoint.load(home, kept)
        for path in home.glob("records/*.json"):
            if run.command.options.record and not (JUDGES / "classifier" / path.name).exists():
                records.accept(records.read(path), JUDGES)
    trained = Trained(name, model, error.item(), run.device)
    run.read(f"classifier/{name}", trained.fingerprint)
    return trained


def train(model: Classifier, recipe: Recipe, data: images.Images, name: str, home: Path) -> None:
    """Train it, and leave weights and a record below `home`."""
    print(f"training {name}, once on this machine ...", file=sys.stderr, flush=True)
    started, begun = datetime.now(UTC), time.monotonic()
    with on_threads(1):  # so that the weights do not depend on it
        model.initialise(recipe.seed)
        model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        batches = ImageBatches(
            data.train, data.train_labels, recipe.batch_size, recipe.seed, flip=recipe.mirror, mean=127.5, scale=127.5
        )
        steps = recipe.epochs * batches.per_epoch
        optimizer = torch.optim.Adam(model.parameters(), recipe.lr, fused=True)
        schedule = warmup_cosine(0, steps)
        losses: list[float | None] = []
        for step in range(steps):
            x, y = batches(step)
            optimizer.param_groups[0]["lr"] = recipe.lr * schedule(step)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x)[1], y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            parts = zip(data.test.split(500), data.test_labels.split(500), strict=True)
            wrong = sum(int((model(normalise(x, 127.5, 127.5))[1].argmax(1) != y).sum()) for x, y in parts)
        error = 100 * wrong / len(data.test)
        seconds = time.monotonic() - begun
        record = records.Record(
            paper="classifier",
            preset=name.replace("_", "-"),
            overrides={},
            config=dataclasses.asdict(recipe),
            seed=recipe.seed,
            stacked=1,
            status="finished",
            claims=[],
            deviations={},
            metrics={"test_error": error},
            curves={"loss": records.thin(list(range(steps)), losses)},
            data={data.name: data.fingerprint},
            precision="no",
            processes=1,
            started=started.isoformat(timespec="seconds"),
            wall_seconds=round(seconds, 3),
            steps_per_second=float(f"{steps / seconds:.6g}"),
            **machine.origin("classifier"),
            **machine.circumstances(torch.device("cpu")),
        )
        records.keep(record, home / "records", home)
        checkpoint.save(home, steps, {"model": model, "error": torch.tensor(error)}, seconds)


class Inception:
    """The network that FID and the inception score are defined by (TensorFlow's of 2015-12-05), as TorchScript.

    It resizes to 299x299 itself; grey pictures are repeated to three channels. Read from `<data_dir>/hub/<INCEPTION>`
    or the Hub, and checked by its hash, whoever holds it.
    """

    def __init__(self, data_dir: Path | None, device: torch.device, sha256: str = INCEPTION_SHA256) -> None:
        local = data_dir / "hub" / INCEPTION / INCEPTION_FILE if data_dir else None
        path = local if local is not None and local.is_file() else _downloaded(data_dir)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path} is not the Inception network of FID (its hash differs); delete it")
        self.name = f"inception_{sha256[:8]}"
        self.net = torch.jit.load(str(path), map_location=device).eval()

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = (pictures * 255).round().to(torch.uint8)
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        return self.net(x, return_features=True), self.net(x, no_output_bias=True)


def _downloaded(data_dir: Path | None) -> Path:
    """The file from the Hub, or from its cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(INCEPTION, INCEPTION_FILE, local_files_only=not hub.reachable()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the Inception network cannot be read: {hub.missing(f'{INCEPTION}/{INCEPTION_FILE}', data_dir)}"
        ) from error
