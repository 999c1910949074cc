"""Identity of SimCLR: counts, the loss against a loop, views against one picture at a time, LARS, frozen encoders; the
small protocol on digits part by part."""

import colorsys
import math
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.cli import launch
from common.errors import UserError
from common.initial import torch_default
from common.records import Record, read
from papers.simclr import augment, digits
from papers.simclr.audit import audit
from papers.simclr.augment import ORDERS, Views, google_boxes, resizing, to_rows, torchvision_boxes
from papers.simclr.config import PRESETS, Config
from papers.simclr.lars import LARS
from papers.simclr.model import Encoder, Net, nearest, nt_xent, projection
from papers.simclr.train import build, schedule


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, side: int = 32) -> Tensor:
    """Smooth and sharp, coloured and grey, (n, h, w, 3) uint8."""
    x = torch.randint(0, 256, (n, side, side, 3), generator=numbers(), dtype=torch.uint8)
    x[::3] = (torch.arange(side)[:, None, None] * torch.tensor([7, 3, 5])).to(torch.uint8)
    x[1::5] = x[1::5, :, :, :1]
    return x


def run(folder: Path, *arguments: str) -> Record:
    with pytest.raises(SystemExit) as stop:
        launch("simclr", ["--device", "cpu", "--output-dir", str(folder), "--preset", "smoke", *arguments])
    assert stop.value.code == 0
    return read(next(folder.glob("records/*.json")))


# ---- Counts, and the reference library


def test_counts_of_the_paper() -> None:
    counts = audit(None)[0]
    assert [round(counts[f"million_parameters/resnet50-{w}x"]) for w in (1, 2, 4)] == [24, 94, 375]
    assert counts["parameters/cifar-resnet50"] == 23_500_352  # torchvision's with the stem exchanged
    assert counts["parameters/cifar-resnet18-lightly"] == 11_168_832
    assert counts["parameters/cifar-resnet18"] - 11_168_832 == 64 * 64 + 2 * 64  # the code projects in its first stage
    assert counts["billion_multiply_adds/cifar-resnet50"] == pytest.approx(1.298, abs=5e-4)
    with pytest.raises(UserError, match="layers, not 20"):
        Encoder(20)
    with pytest.raises(UserError, match="leaves no channels"):
        Encoder(18, 0)


@pytest.mark.parametrize("depth", [18, 50])
def test_stages_are_the_reference_librarys(depth: int) -> None:
    from transformers import ResNetConfig, ResNetModel

    deep = depth == 50
    config: Any = ResNetConfig(
        depths=[3, 4, 6, 3] if deep else [2, 2, 2, 2],
        hidden_sizes=[256, 512, 1024, 2048] if deep else [64, 128, 256, 512],
        layer_type="bottleneck" if deep else "basic",
        downsample_in_bottleneck=False,  # the stride in the 3x3 convolution
    )
    theirs = ResNetModel(config).encoder.double().eval()
    ours = Encoder(depth, dialect="lightly").double().eval()
    with torch.no_grad():
        for p in ours.stages.parameters():
            p.uniform_(-0.1, 0.1, generator=numbers()) if p.ndim > 1 else p.uniform_(0.5, 1.5, generator=numbers(1))
    place = [(stage, i) for stage, n in enumerate(config.depths) for i in range(n)]
    mapped = {}
    for name, value in ours.stages.state_dict().items():
        block, kind, number, leaf = name.split(".")
        stage, i = place[int(block)]
        convolution = kind == "convolutions" or (kind == "shortcut" and number == "0")
        where = "shortcut" if kind == "shortcut" else f"layer.{number}"
        mapped[f"stages.{stage}.layers.{i}.{where}.{'convolution' if convolution else 'normalization'}.{leaf}"] = value
    found = theirs.load_state_dict(mapped, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    x = torch.randn(2, 64, 16, 16, generator=numbers(2), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.stages(x), theirs(x).last_hidden_state)


def test_blocks_start_as_their_shortcuts_and_views_may_go_apart() -> None:
    encoder = Encoder(18, 0.25)
    for block in encoder.stages:
        x = torch.randn(2, block.convolutions[0].in_channels, 8, 8)  # type: ignore[union-attr, index]
        torch.testing.assert_close(block(x), block.shortcut(x).relu())  # type: ignore[operator]
    x = torch.randn(8, 3, 32, 32, generator=numbers())
    apart = Net(Encoder(10, 0.125), projection("nonlinear", 64, 16, 2, "lightly"), apart=True)
    z = apart(x)
    apart.apart = False
    torch.testing.assert_close(z, torch.cat([apart(x[:4]), apart(x[4:])]))
    assert not torch.allclose(z, apart(x), atol=1e-3)


# ---- The loss


def loop(z: Tensor, tau: float) -> Tensor:
    """Algorithm 1, word for word: views 2k - 1 and 2k of picture k."""
    n = len(z) // 2
    z = torch.stack([z[:n], z[n:]], 1).flatten(0, 1)
    s = [[z[i] @ z[j] / (z[i].norm() * z[j].norm()) for j in range(2 * n)] for i in range(2 * n)]

    def one(i: int, j: int) -> Tensor:
        return -torch.log(torch.exp(s[i][j] / tau) / sum(torch.exp(s[i][k] / tau) for k in range(2 * n) if k != i))

    return sum(one(2 * k, 2 * k + 1) + one(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)  # type: ignore[return-value]


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_the_loss_and_its_gradient_are_algorithm_1s(tau: float) -> None:
    z = torch.randn(10, 4, generator=numbers(), dtype=torch.float64)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    value, expected = nt_xent(ours, tau)[0], loop(theirs, tau)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_in_closed_form() -> None:
    assert nt_xent(torch.randn(2, 8), 0.1)[0] == 0  # one picture: nothing to tell it from
    n, tau = 6, 0.5
    value, accuracy = nt_xent(torch.eye(n).repeat(2, 1), tau)
    assert float(value) == pytest.approx(math.log(1 + 2 * (n - 1) * math.exp(-1 / tau)), rel=1e-6)
    assert accuracy == 1
    value, _ = nt_xent(torch.ones(2 * n, 3), tau)
    assert float(value) == pytest.approx(math.log(2 * n - 1), rel=1e-6)
    z = torch.randn(8, 3)
    torch.testing.assert_close(nt_xent(3 * z, 1.0)[0], nt_xent(z, 1.0)[0])
    assert not torch.allclose(nt_xent(3 * z, 1.0, False)[0], nt_xent(z, 1.0, False)[0])


PROGRAM = """
import torch
import torch.distributed as d
from accelerate import Accelerator
from common.run import leave
from papers.simclr.model import Encoder, Net, nt_xent, projection

accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, d.get_world_size
numbers = torch.Generator().manual_seed(0)
z = torch.randn(2, 6, 5, generator=numbers)  # views, pictures
x = torch.randn(2, 6, 3, 16, 16, generator=numbers)


def gradients(views, function):
    views = views.flatten(0, 1).clone().requires_grad_()
    value = function(views)
    value.backward()
    return value.detach(), views.grad.unflatten(0, (2, -1))


def loss(x):
    net = Net(Encoder(10, 0.125), projection("nonlinear", 64, 16, 2, "google"))
    net.initialise(0, "google")
    return nt_xent(net(x), 0.5)[0]


for views, function, tolerance in ((z, lambda z: nt_xent(z, 0.2)[0], 1e-5), (x, loss, 1e-2)):
    d.get_world_size = lambda: 1  # one process alone is the oracle
    expected, gradient = gradients(views, function)
    d.get_world_size = world
    part = slice(3 * rank, 3 * rank + 3)
    value, mine = gradients(views[:, part], function)
    torch.testing.assert_close(accelerator.reduce(value, "mean"), expected)
    assert not torch.allclose(value, expected)
    # halved: gradients are averaged over processes
    assert (mine / 2 - gradient[:, part]).norm() < tolerance * gradient[:, part].norm()
print("done")
leave(accelerator)
"""


def test_two_processes_contrast_with_each_others_pictures(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2


# ---- LARS, schedules


def test_lars_is_the_codes_loop() -> None:
    shapes = [(4, 3), (5, 2, 3, 3), (3,)]
    weights = [torch.randn(shape, generator=numbers(i), dtype=torch.float64) for i, shape in enumerate(shapes)]
    weights.append(torch.zeros(2, 2, dtype=torch.float64))  # a norm of 0
    ours = [w.clone().requires_grad_() for w in weights]
    optimizer = LARS([{"params": [*ours[:2], ours[3]]}, {"params": [ours[2]], "adapt": False}], 0.1, 0.9, 0.05)
    v = [torch.zeros_like(w) for w in weights]
    for step in range(4):
        lr = 0.3 / (step + 1)
        gradients = [torch.randn(w.shape, generator=numbers(9 * step + i)) for i, w in enumerate(weights)]
        for p, g in zip(ours, gradients, strict=True):
            p.grad = g.to(torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        for i, g in enumerate(gradients):
            ratio, g = 1.0, g.double()
            if i != 2:
                g = g + 0.05 * weights[i]
                if weights[i].norm() > 0 and g.norm() > 0:
                    ratio = 0.001 * weights[i].norm() / g.norm()
            v[i] = 0.9 * v[i] + lr * ratio * g
            weights[i] = weights[i] - v[i]
    for ours_, w in zip(ours, weights, strict=True):
        torch.testing.assert_close(ours_.detach(), w)


def test_presets_and_schedules_are_the_papers() -> None:
    cfg = PRESETS["b9"]
    assert cfg == Config()
    assert (cfg.peak_lr, cfg.train_steps, cfg.warmup_steps, cfg.linear_steps) == (4.0, 48_829, 488, 9_766)
    rate = schedule(cfg, 48)
    assert [rate(0), rate(244), rate(488)] == pytest.approx([0, 0.5, 1])
    assert rate((48_829 + 488) // 2) == pytest.approx(0.5, abs=1e-4)
    root, line = (Config(batch_size=4096, lr_scaling=s, lr=lr) for s, lr in (("sqrt", 0.075), ("linear", 0.3)))  # type: ignore[arg-type]
    assert root.peak_lr == line.peak_lr == pytest.approx(4.8)  # Appendix B.1
    light = PRESETS["lightly-r18-512-200"]
    assert (light.peak_lr, light.train_steps) == (pytest.approx(0.24), 200 * 97)
    rate = schedule(light, 97)
    assert rate(96) == 1.0
    assert rate(97) == pytest.approx(0.5 * (1 + math.cos(math.pi / 200)))
    plain = [p for p in build(PRESETS["laptop"]).parameters() if p.requires_grad and p.ndim == 1]
    assert len(plain) == 2 * (1 + 8 + 4) + 2 + 1  # gains and biases, but no bias behind the last layer of the head


# ---- Views, one picture at a time


def tf_bicubic(crop: np.ndarray, side: int) -> np.ndarray:
    """resize_bicubic with TensorFlow 1's defaults, pixel by pixel in float64, its table of weights included."""

    def taps(i: int, n: int) -> list[tuple[int, float]]:
        place = float(np.float32(i) * np.float32(n / side))
        first = math.floor(place)
        t = np.rint((place - first) * 1024) / 1024
        near, far = (lambda d: 1.25 * d**3 - 2.25 * d**2 + 1), (lambda d: -0.75 * (d**3 - 5 * d**2 + 8 * d - 4))
        weights = far(1 + t), near(t), near(1 - t), far(2 - t)
        return [(min(max(first + k - 1, 0), n - 1), w) for k, w in enumerate(weights)]

    h, w, _ = crop.shape
    out = np.zeros((side, side, 3))
    for y in range(side):
        for x in range(side):
            for j, wy in taps(y, h):
                for i, wx in taps(x, w):
                    out[y, x] += wy * wx * crop[j, i]
    return out


@pytest.mark.parametrize("box", [(3, 5, 9, 11), (0, 0, 16, 16), (6, 1, 10, 13)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_tensorflows_or_pillows(box: tuple[int, int, int, int], flip: bool) -> None:
    side = 16
    x = pictures(4, side)[3].double() / 255
    top, left, h, w = (torch.tensor([float(v)], dtype=torch.float64) for v in box)

    def ours(dialect: Any) -> Tensor:
        rows = resizing(top, h, side, dialect)[0]
        columns = resizing(left, w, side, dialect, torch.tensor([flip]))[0]
        return torch.einsum("ij,jkc,lk->ilc", rows, x, columns)

    y0, x0, y1, x1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    google = torch.from_numpy(tf_bicubic(x[y0:y1, x0:x1].numpy(), side))
    torch.testing.assert_close(ours("google"), google.flip(1) if flip else google, rtol=0, atol=2e-4)
    for c in range(3):  # Pillow's bilinear filter in float32
        crop = PIL.Image.fromarray(x[y0:y1, x0:x1, c].numpy().astype(np.float32))
        pillow = torch.tensor(np.asarray(crop.resize((side, side), PIL.Image.Resampling.BILINEAR))).double()
        torch.testing.assert_close(ours("torchvision")[..., c], pillow.flip(1) if flip else pillow, rtol=0, atol=1e-5)


def test_boxes() -> None:
    u = torch.rand(200_000, 22, generator=numbers())
    for boxes, least in ((google_boxes(32, u[:, :4]), 0.08 * 1024), (torchvision_boxes(32, u), 70)):
        top, left, h, w = boxes.unbind(1)
        area = h * w
        assert area.min() >= least  # torchvision rounds both sides, and does not look again
        assert area.max() <= 1024
        assert ((top >= 0) & (left >= 0) & (top + h <= 32) & (left + w <= 32)).all()
        assert ((w + 1 >= 0.75 * h) & (w - 1 <= 4 / 3 * h)).all()  # sides are whole pixels
    google, torchvision = (b[:, 2] * b[:, 3] / 1024 for b in (google_boxes(32, u[:, :4]), torchvision_boxes(32, u)))
    assert torchvision.mean() == pytest.approx(0.5, abs=0.03)  # area is uniform but for crops that did not fit
    assert google.mean() < 0.44  # height is uniform: smaller crops
    assert google_boxes(32, u[:, :4])[:, 2].float().mean() == pytest.approx(20, abs=1)
    whole = google_boxes(32, torch.tensor([[3 / 7, 0.999, 0.9, 0.9]]))  # ratio 1, the largest
    assert whole.tolist() == [[0, 0, 32, 32]]


def one_at_a_time(name: str, x: np.ndarray, f: float) -> np.ndarray:
    """The TensorFlow operations by their definitions, pixel by pixel through colorsys."""
    if name == "brightness":
        return x + f
    if name == "contrast":
        return (x - x.mean((0, 1))) * f + x.mean((0, 1))
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*x[place])
        h, s = (h, min(1.0, s * f)) if name == "saturation" else ((h + f) % 1, s)
        out[place] = colorsys.hsv_to_rgb(h, s, v)
    return out


def planes(x: Tensor) -> Tensor:
    """(n, h, w, 3) -> (3, n, h, w)"""
    return x.permute(3, 0, 1, 2).contiguous()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_are_tensorflows(name: str) -> None:
    x = pictures(12, 6).double() / 255
    low, high = {"brightness": (-0.4, 0.4), "hue": (-0.1, 0.1)}.get(name, (0.6, 1.4))
    f = torch.linspace(low, high, 12, dtype=torch.float64)
    part = {"brightness": augment.brightness_added, "contrast": augment.contrast_google,
            "saturation": augment.saturation_google, "hue": augment.hue}[name]  # fmt: skip
    ours = part(planes(x), f.view(-1, 1, 1)).permute(1, 2, 3, 0)
    for i in range(12):
        expected = torch.from_numpy(one_at_a_time(name, x[i].numpy(), float(f[i])))
        torch.testing.assert_close(ours[i], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_colours_are_pillows(name: str) -> None:
    x = pictures(9)
    f = torch.linspace(0.6, 1.4, 9)
    part = {"Brightness": augment.brightness_multiplied, "Contrast": augment.contrast_torchvision,
            "Color": augment.saturation_torchvision}[name]  # fmt: skip
    ours = part(planes(x.float() / 255), f.view(-1, 1, 1)).clamp(0, 1).permute(1, 2, 3, 0)
    for i in range(9):
        image = PIL.Image.fromarray(x[i].numpy())
        pillow = np.asarray(getattr(PIL.ImageEnhance, name)(image).enhance(float(f[i]))) / 255
        assert np.abs(ours[i].numpy() - pillow).max() < 2.1 / 255  # Pillow cuts to whole values, also its grey


def test_views_are_their_parts_one_after_the_other() -> None:
    """A whole view from its random numbers, in float64: crop, flip, jitter in its order, grey, blur."""
    n, side = 40, 20
    x = pictures(n, side)
    views = Views(to_rows(x), 3, strength=1.0, blur=0.5)
    index = torch.arange(n).flip(0)
    made = views(index, 5)
    table = views.draws.uniform("views", 5, 2 * views.columns)[index].view(n, 2, -1).double()
    parts = (augment.brightness_added, augment.contrast_google, augment.saturation_google, augment.hue)
    seen = set()
    for i in range(n):
        for view in range(2):
            u = table[i, view]
            top, left, h, w = google_boxes(side, u[None, 10:].float()).double().unbind(1)
            rows = resizing(top, h, side, "google")[0]
            columns = resizing(left, w, side, "google", u[None, 0] < 0.5)[0]
            y = torch.einsum("ij,jkc,lk->cil", rows, x[index[i]].double() / 255, columns)[:, None]
            if u[1] < 0.8:
                order = ORDERS[int(24 * u[6].float())]
                seen.add(order)
                for part in order:
                    centre, spread = ((0, 0.8), (1, 0.8), (1, 0.8), (0, 0.2))[part]
                    y = parts[part](y, (centre + spread * (2 * u[2 + part] - 1)).view(1, 1, 1)).clamp(0, 1)
            if u[7] < 0.2:
                y = (0.2989 * y[0] + 0.5870 * y[1] + 0.1140 * y[2]).expand(3, -1, -1, -1)
            if u[8] < 0.5:
                smooth = augment.blurring(0.1 + 1.9 * u[None, 9], side)[0]
                y = smooth @ y @ smooth.T
            torch.testing.assert_close(made[view * n + i].double(), y[:, 0].clamp(0, 1), rtol=0, atol=2e-4)
    assert len(seen) > 15


def test_a_blur_is_a_gaussian_with_zeros_around() -> None:
    x = torch.rand(1, 1, 40, 40, generator=numbers(), dtype=torch.float64)
    sigma = torch.tensor([1.3], dtype=torch.float64)
    matrix = augment.blurring(sigma, 40)[0]
    kernel = torch.exp(-(torch.arange(-2, 3).double() ** 2) / (2 * 1.3**2))  # 40 // 10 = 4: radius 2
    kernel /= kernel.sum()
    expected = F.conv2d(x, torch.outer(kernel, kernel)[None, None], padding=2)
    torch.testing.assert_close(matrix @ x[0, 0] @ matrix.T, expected[0, 0])


def test_views_depend_on_picture_epoch_and_view_alone() -> None:
    x = to_rows(pictures(30))
    views = Views(x, 0)
    a = views(torch.arange(30), 2)
    b = Views(x, 0)(torch.tensor([7, 3, 29]), 2)
    torch.testing.assert_close(b, a[[7, 3, 29, 37, 33, 59]], rtol=0, atol=1e-6)
    assert a.is_contiguous(memory_format=torch.channels_last)
    assert not torch.allclose(a[:30], a[30:], atol=0.1)
    assert not torch.allclose(a, views(torch.arange(30), 3), atol=0.1)
    assert not torch.allclose(a, Views(x, 1)(torch.arange(30), 2), atol=0.1)
    whole = Views(x, 0, crop=False, jitter=0, grey=0)(torch.arange(30), 2)
    assert torch.equal(whole, (x.permute(0, 2, 1, 3) / 255).repeat(2, 1, 1, 1))
    torchvision = Views(x, 0, "torchvision", brightness="multiply")(torch.arange(30), 2)
    assert torchvision.shape == a.shape
    assert (torchvision >= 0).all()
    assert (torchvision <= 1).all()


# ---- Training


def test_the_nearest_vote() -> None:
    bank = F.normalize(torch.randn(50, 8, generator=numbers()), dim=1)
    labels = torch.randint(4, (50,), generator=numbers(1))
    h = F.normalize(torch.randn(9, 8, generator=numbers(2)), dim=1)
    for i, found in enumerate(nearest(h, bank, labels, 4, 5, 0.1).tolist()):
        s = bank @ h[i]
        votes = [0.0] * 4
        for j in s.argsort(descending=True)[:5].tolist():
            votes[labels[j]] += math.exp(float(s[j]) / 0.1)
        assert found == votes.index(max(votes))


def test_the_linear_phase_leaves_the_encoder_alone(tmp_path: Path) -> None:
    short, long = run(tmp_path / "short"), run(tmp_path / "long", "--linear-epochs", "3")
    for name in ("train_loss", "train_accuracy", "knn_accuracy"):
        assert short.metrics[name] == long.metrics[name]
    assert short.metrics["linear_accuracy"] != long.metrics["linear_accuracy"]
    states = [torch.load(max(folder.glob("checkpoints/step-*")) / "state.pt") for folder in tmp_path.iterdir()]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


def test_smoke_learns_when_it_goes_on(tmp_path: Path) -> None:
    more = [
        "--epochs",
        "12",
        "--lr",
        "0.3",
        "--crop",
        "False",
        "--linear-epochs",
        "100",
        "--linear-crops",
        "False",
        "--neighbours",
        "5",
    ]
    record = run(tmp_path / "run", *more)
    losses = record.curves["train_loss"][1]
    assert losses[-1] < 0.75 * losses[0]  # type: ignore[operator]
    for name in ("train_accuracy", "linear_accuracy", "knn_accuracy"):
        assert record.metrics[name] > 40  # type: ignore[operator]


@pytest.mark.parametrize(
    "changes",
    [
        ["--objective", "supervised"],
        ["--head", "none", "--optimizer", "sgd", "--lr", "0.01"],
        ["--head", "linear", "--normalised", "False", "--crop", "False"],
        ["--dialect", "lightly", "--brightness", "multiply", "--depth", "18", "--linear-crops", "False"],
    ],
)
def test_every_way_of_training_runs(tmp_path: Path, changes: list[str]) -> None:
    record = run(tmp_path / "run", "--train-images", "128", *changes)
    metric = "test_accuracy" if "supervised" in changes else "linear_accuracy"
    assert record.status == "finished"
    assert 0 <= record.metrics[metric] <= 100  # type: ignore[operator]


# ---- Digits


def test_the_digits_preset_is_the_notebooks() -> None:
    cfg = PRESETS["ropedia-digits"]
    assert (cfg.train_steps, cfg.batch_size, cfg.peak_lr, cfg.temperature) == (2501, 256, 1.5e-3, 0.5)
    assert (cfg.linear_labels, cfg.linear_draws, cfg.linear_steps, cfg.linear_lr) == (60, 8, 500, 1e-2)
    assert (cfg.train_images, cfg.test_images, cfg.projection, cfg.weight_decay) == (1257, 540, 64, 0)
    net = digits.Net(cfg.projection)
    assert sum(p.numel() for p in net.encoder.parameters()) == 32 * 10 + 64 * (9 * 32 + 1)
    assert sum(p.numel() for p in net.head.parameters()) == 65 * 128 + 129 * 64


def test_the_digits_net_and_loss_by_hand() -> None:
    """Patches times weights, ReLU before max pooling, and Algorithm 1's loop."""
    net = digits.Net(6)
    torch_default(net, numbers())
    k1, c1, k2, c2, w1, b1, w2, b2 = net.parameters()
    for weight, bias in ((k1, c1), (k2, c2), (w1, b1), (w2, b2)):
        for p in (weight, bias):
            assert 0.8 < p.abs().max() * math.sqrt(weight[0].numel()) <= 1
    x = torch.rand(8, 1, 8, 8, generator=numbers(1))
    y = (k1.flatten(1) @ F.unfold(x, 3, padding=1) + c1[:, None]).clamp(min=0).view(8, 32, 8, 8)
    y = y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2).amax(-1)
    h = (k2.flatten(1) @ F.unfold(y, 3, padding=1) + c2[:, None]).clamp(min=0).mean(2)
    torch.testing.assert_close(net.encoder(x), h)
    z = (h @ w1.T + b1).clamp(min=0) @ w2.T + b2
    torch.testing.assert_close(nt_xent(net(x), 0.5)[0], loop(z, 0.5), rtol=1e-5, atol=1e-6)


def test_views_of_digits_part_by_part() -> None:
    x = torch.rand(3, 1, 8, 8, generator=numbers())
    still = digits.Draws(torch.zeros_like(x), torch.ones(3, 1, 1, 1), (0, 0), None)
    assert torch.equal(digits.view(x, still), x)
    noise = torch.randn(x.shape, generator=numbers(1))
    assert torch.equal(digits.view(x, still._replace(noise=noise)), (x + 0.1 * noise).clamp(0, 1))
    gain = torch.tensor([0.75, 1.0, 1.25]).view(3, 1, 1, 1)
    assert torch.equal(digits.view(x, still._replace(gain=gain)), (x * gain).clamp(0, 1))
    down = digits.view(x, still._replace(shift=(1, -1)))
    assert torch.equal(down[..., 1:, :-1], x[..., :-1, 1:])
    assert torch.equal(down[..., 0, -1], x[..., -1, 0])  # around the edges
    cut = digits.view(x, still._replace(corner=(2, 5)))
    assert (cut[..., 2:4, 5:7] == 0).all()
    assert int((cut != x).sum()) == 3 * 4  # a square of 2 x 2 in all pictures
    # all at once: noise before gain, shift before cut-out, clamped at the end alone
    everything = digits.Draws(noise, gain, (1, 0), (0, 0))
    expected = torch.cat([((x + 0.1 * noise) * gain)[..., -1:, :], ((x + 0.1 * noise) * gain)[..., :-1, :]], -2)
    expected[..., :2, :2] = 0
    assert torch.equal(digits.view(x, everything), expected.clamp(0, 1))


def test_what_a_view_of_digits_leaves_to_chance() -> None:
    draw = numbers()
    many = [digits.drawn(torch.Size((4, 1, 8, 8)), draw) for _ in range(2000)]
    assert {d.shift for d in many} == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    corners = [d.corner for d in many if d.corner is not None]
    assert len(corners) / len(many) == pytest.approx(0.3, abs=0.04)
    assert {i for i, _ in corners} == {j for _, j in corners} == set(range(6))
    gain = torch.stack([d.gain for d in many])
    assert gain.shape == (2000, 4, 1, 1, 1)
    assert 0.75 <= gain.min() < 0.76 < 1.24 < gain.max() <= 1.25
    assert torch.stack([d.noise for d in many]).std() == pytest.approx(1, abs=0.01)


def test_probes_learn_each_by_itself() -> None:
    chosen = digits.labelled(1257, 60, 8)
    assert chosen.shape == (8, 60)
    assert torch.equal(chosen[3], torch.randperm(1257, generator=torch.Generator().manual_seed(3))[:60])
    y = torch.arange(40).remainder(4).repeat(3, 1)
    h = 3 * F.one_hot(y, 5).float() + 0.1 * torch.randn(3, 40, 5, generator=numbers())
    probes = digits.probe(h, y, 4, 1e-2, 300, ("probe",))
    assert digits.accuracy(probes, h[0], y[0]) == 1.0
    assert digits.accuracy(probes, h[0], (y[0] + 1) % 4) == 0.0
    start = digits.probe(h, y, 4, 1e-2, 0, ("probe",))
    assert all((p.abs() <= 5**-0.5).all() for p in start)
    layer = torch.nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight.copy_(start[0][1].T)
        layer.bias.copy_(start[1][1, 0])
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(layer(h[1]), y[1]).backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight.T, probes[0][1], rtol=1e-3, atol=1e-4)


def test_the_digits_preset_leaves_a_record_and_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record = run(folder, "--preset", "ropedia-digits", "--pretrain-steps", "3", "--linear-epochs", "2")
    assert record.metrics.keys() == {"train_loss", "probe_accuracy", "probe_accuracy_random"}
    assert record.metrics["train_loss"] == pytest.approx(math.log(511), abs=0.01)
    assert record.curves["train_loss"][1][-1] == pytest.approx(record.metrics["train_loss"], rel=1e-5)
    assert set(record.claims) == {
        f"simclr/ropedia-digits/{name}" for name in ("probe", "probe-random", "beats-random", "train-loss")
    }
    shutil.rmtree(folder / "records")  # as if it had been killed before its end
    with pytest.raises(SystemExit):
        launch("simclr", ["--resume", str(folder)])
    assert read(next(folder.glob("records/*.json"))).metrics == record.metrics
