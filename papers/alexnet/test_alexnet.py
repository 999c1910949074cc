"""AlexNet: counts, layers against torch's own, the original's update and order, both data paths end to end."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.cli import launch
from common.initial import torch_default
from common.optim import stages
from common.records import read
from papers.alexnet.audit import audit
from papers.alexnet.config import PRESETS, Config
from papers.alexnet.data import FileBatches, Statistics, random_crop, resized, square, statistics, ten_views
from papers.alexnet.model import (
    AlexNet,
    CifarNet,
    LocallyConnected,
    LocalResponseNorm,
    MnistNet,
    initialise,
    pooled_size,
)
from papers.alexnet.train import epochs_to, keep_velocity, make_optimizer, top_errors


def test_counts_of_the_paper() -> None:
    counts = audit(None)[0]
    assert counts["parameters"] == 60_965_224
    assert counts["neurons"] == 659_272
    assert counts["multiplications_millions"] == pytest.approx(724.4, abs=0.05)
    layers = [counts[f"neurons_layer{i}"] for i in range(1, 9)]
    assert layers[1:] == [186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert layers[0] == 55 * 55 * 96  # printed: 253,440
    assert counts["parameters/sec3.3-no-lrn"] == 1_116_490
    assert counts["parameters/sec3.3-lrn"] == 2_112_970
    with torch.device("meta"):
        assert sum(p.numel() for p in AlexNet(lrn=False).convs.parameters()) == 2_334_080


@pytest.mark.parametrize(
    ("k", "n", "alpha", "beta"), [(2.0, 5, 1e-4, 0.75), (1.0, 9, 0.001 / 9, 0.75), (1.0, 3, 0.1, 1)]
)
def test_response_normalisation_is_torchs_at_n_times_alpha(k: float, n: int, alpha: float, beta: float) -> None:
    torch.manual_seed(0)
    a = (30 * torch.randn(3, 16, 5, 4)).to(memory_format=torch.channels_last)
    gradient = torch.randn(3, 16, 5, 4)
    found = []
    for norm in (LocalResponseNorm(16, k, n, alpha, beta), nn.LocalResponseNorm(n, n * alpha, beta, k)):
        x = a.clone().requires_grad_()
        out = norm(x)
        out.backward(gradient)
        found += [out.detach(), x.grad]
    torch.testing.assert_close(found[0], found[2], rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(found[1], found[3], rtol=2e-5, atol=1e-5)


def test_response_normalisation_is_the_papers_formula() -> None:
    """Section 3.3, as printed: the sum runs from max(0, i - n/2) to min(N - 1, i + n/2)."""
    a = 10 * torch.rand(1, 7, 1, 1)
    out = LocalResponseNorm(7)(a).flatten()
    values = a.flatten().tolist()
    for i in range(7):
        total = sum(values[j] ** 2 for j in range(max(0, i - 2), min(6, i + 2) + 1))
        assert out[i].item() == pytest.approx(values[i] / (2 + 1e-4 * total) ** 0.75, rel=1e-6)


def test_a_locally_connected_layer_is_unfold_and_einsum() -> None:
    torch.manual_seed(0)
    layer = LocallyConnected(5, 7, size=6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, 6, 6, requires_grad=True)
    out = layer(x.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)  # (b, c, h, w)
    weight = layer.weight.unflatten(1, (9, 5)).transpose(1, 2).flatten(1, 2)  # unfold's order: maps first
    expected = torch.einsum("bkp,pko->bpo", F.unfold(x, 3, padding=1), weight) + layer.bias[:, 0]
    torch.testing.assert_close(out.flatten(2), expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(out)
    ours = torch.autograd.grad(out, (x, layer.weight, layer.bias), gradient)
    theirs = torch.autograd.grad(expected.transpose(1, 2).reshape(out.shape), (x, layer.weight, layer.bias), gradient)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_with_equal_weights_everywhere_it_is_a_convolution() -> None:
    conv, layer = nn.Conv2d(4, 6, 3, padding=1), LocallyConnected(4, 6, size=5)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.permute(2, 3, 1, 0).reshape(36, 6).expand(25, -1, -1))
        layer.bias.copy_(conv.bias.expand(25, 1, -1))  # type: ignore[union-attr]
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x.permute(2, 3, 0, 1)).permute(2, 3, 0, 1), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("lrn", [True, False])
def test_the_cifar_net_is_the_configuration_layer_by_layer(lrn: bool, activation: str) -> None:
    """layers-conv-local-11pct.cfg in its own order: ReLU in the convolution, then pool, cmrnorm | cmrnorm, pool."""
    net = CifarNet((64, 32), lrn, activation=activation)
    initialise(net.layers, (0.001, 0.01, 0.04, 0.04, 0.01), (0.1,) * 5, torch.Generator().manual_seed(0))
    f = nn.ReLU if activation == "relu" else nn.Tanh
    norm = (lambda: nn.LocalResponseNorm(9, 0.001, 0.75, 1.0)) if lrn else nn.Identity
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    blocks = nn.Sequential(net.conv1, f(), pool, norm(), net.conv2, f(), norm(), pool)
    x = 60 * torch.randn(4, 3, 24, 24)
    h = blocks(x)
    assert h.shape == (4, 64, 6, 6)
    for layer in (net.local3, net.local4):
        h = f()(layer(h.permute(2, 3, 0, 1)).permute(2, 3, 0, 1))
    expected = net.fc10(h.permute(0, 2, 3, 1).flatten(1))
    out = net(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-6)
    y = torch.arange(4)
    ours = torch.autograd.grad(F.cross_entropy(out, y), list(net.parameters()))
    theirs = torch.autograd.grad(F.cross_entropy(expected, y), list(net.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "z", "left"), [(24, 3, 12), (12, 3, 6), (24, 2, 12), (55, 3, 27), (13, 3, 6)])
def test_pooling_rounds_up(size: int, z: int, left: int) -> None:
    assert pooled_size(size, z) == left == F.max_pool2d(torch.zeros(1, 1, size, size), z, 2, ceil_mode=True).shape[-1]


@torch.no_grad()
def test_alexnet_is_the_plain_one_with_torchs_layers() -> None:
    torch.manual_seed(0)
    net = AlexNet((8, 16, 24, 24, 16), hidden=32, classes=10)
    initialise(net.layers, (0.05,) * 8, (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0), torch.Generator().manual_seed(0))
    c = net.convs
    norm, pool = nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.MaxPool2d(3, 2)
    plain = nn.Sequential(
        nn.ZeroPad2d((0, 3, 0, 3)), c[0], nn.ReLU(), norm, pool, c[1], nn.ReLU(), norm, pool,
        c[2], nn.ReLU(), c[3], nn.ReLU(), c[4], nn.ReLU(), pool, nn.Flatten(),
    )  # fmt: skip
    x = 50 * torch.randn(2, 3, 224, 224)
    h = plain(x)
    assert h.shape == (2, 16 * 6 * 6)
    h = 0.5 * F.relu(net.fcs[1](0.5 * F.relu(net.fcs[0](h))))
    expected = net.fcs[2](h)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    none, half = torch.zeros(2, 64, dtype=torch.bool), torch.full((2, 64), 0.5)
    torch.testing.assert_close(net(x, half), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(x, none), net.fcs[2](torch.zeros_like(h)))
    y = net.convs[1](torch.ones(1, 8, 9, 9))  # the columns: the second half does not see the first
    z = net.convs[1](torch.cat((torch.zeros(1, 4, 9, 9), torch.ones(1, 4, 9, 9)), 1))
    assert torch.equal(y[:, 8:], z[:, 8:])
    assert not torch.equal(y[:, :8], z[:, :8])


@torch.no_grad()
def test_pooling_without_overlap_leaves_equally_many_places() -> None:
    net = AlexNet((4, 4, 4, 4, 4), (1,) * 5, z=2, hidden=8, classes=6)
    assert net(torch.randn(1, 3, 224, 224)).shape == (1, 6)


def test_the_update_is_cuda_convnets() -> None:
    """v <- m v - eps (wc w + g), w <- w + v, eps inside v (weights.cuh), where eps falls and biases keep theirs."""
    torch.manual_seed(0)
    cfg = PRESETS["sec3.3-lrn"]
    net = CifarNet((2, 2), False)
    initialise(net.layers, (0.1,) * 5, (0.1,) * 5, torch.Generator().manual_seed(0))
    schedule = stages([3, 6, 9], [1.0, 0.1, 0.01])
    optimizer = make_optimizer(cfg, [net])
    after = keep_velocity(optimizer, schedule)
    w, b = (p.detach().clone() for p in (net.fc10.weight, net.fc10.bias))
    v, u = torch.zeros_like(w), torch.zeros_like(b)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0, 0.004, 0.004, 0.01, 0.0]
    for step in range(9):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1.0 if group.get("constant") else schedule(step))
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        g, h = net.fc10.weight.grad.clone(), net.fc10.bias.grad.clone()  # type: ignore[union-attr]
        optimizer.step()
        after(step)
        v = 0.9 * v - 0.001 * schedule(step) * (0.01 * w + g)
        u = 0.9 * u - 0.002 * h
        w, b = w + v, b + u
        torch.testing.assert_close(net.fc10.weight.detach(), w)
        torch.testing.assert_close(net.fc10.bias.detach(), b)


def source(n: int = 60, **more: object) -> FileBatches:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8)
    arguments: dict = {"seed": 0, "batch_size": 8, "data_batch": 20, "stage_epochs": (2, 1), "stage_files": (2, 3)}
    return FileBatches(pixels, torch.arange(n), statistics([pixels]), size=24, **(arguments | more))


def test_files_are_read_in_order_and_their_last_minibatch_is_small() -> None:
    batches = source()
    assert batches.ends == [2 * 2 * 3, 2 * 2 * 3 + 3 * 3]
    places = [batches.place(step) for step in range(21)]
    assert places[:6] == [(0, 0, 8), (0, 8, 16), (0, 16, 20), (0, 20, 28), (0, 28, 36), (0, 36, 40)]
    assert [p[1:] for p in places[6:12]] == [p[1:] for p in places[:6]]
    assert places[12:] == [(2, *p[1:]) for p in places[:6]] + [(2, 40, 48), (2, 48, 56), (2, 56, 60)]
    assert batches(2)[1].tolist() == [16, 17, 18, 19]
    shuffled = source(shuffle=True)
    epoch = torch.cat([shuffled.index(step)[1] for step in range(12, 21)])
    assert sorted(epoch.tolist()) == list(range(60))
    assert epoch.tolist() != list(range(60))


def test_the_papers_presets_last_as_long_as_their_configurations_say() -> None:
    images = torch.zeros(50_000, 1, 1, 3, dtype=torch.uint8)
    for name, ends in (
        ("sec3.3-lrn", [350 * 4 * 79, 150 * 5 * 79, 10 * 5 * 79, 10 * 5 * 79]),
        ("sec3.3-no-lrn", [100 * 4 * 79, 40 * 5 * 79, 10 * 5 * 79, 10 * 5 * 79]),
    ):
        cfg = PRESETS[name]
        stats = Statistics(torch.zeros(1, 1, 3), torch.zeros(3), torch.zeros(3, 3))
        batches = FileBatches(
            images, images[:, 0, 0, 0], stats, seed=0, batch_size=cfg.batch_size, data_batch=cfg.data_batch,
            stage_epochs=cfg.stage_epochs, stage_files=cfg.stage_files, size=1,
        )  # fmt: skip
        assert batches.ends == np.cumsum(ends).tolist()
        assert batches.place(78) == (0, 9_984, 10_000)
        assert (cfg.shuffle, cfg.epochs) == (False, {"sec3.3-lrn": 520, "sec3.3-no-lrn": 160}[name])


def test_a_training_view_is_a_crop_less_the_mean_images_centre() -> None:
    batches = source()
    mean, seen = batches.mean, set()
    assert torch.equal(mean, batches.stats.mean[4:28, 4:28])
    for step in (0, 1, 6):
        x, labels = batches(step)
        assert x.is_contiguous(memory_format=torch.channels_last)
        for view, label in zip(x.permute(0, 2, 3, 1) + mean, labels, strict=True):
            whole = batches.images[label].float()
            crops = whole.unfold(0, 24, 1).unfold(1, 24, 1).permute(0, 1, 3, 4, 2)  # (9, 9, 24, 24, 3)
            same = [((c - view).abs().amax((2, 3, 4)) < 1e-3).nonzero().tolist() for c in (crops, crops.flip(3))]
            found = [(*place, flip) for flip in (0, 1) for place in same[flip]]
            assert len(found) == 1
            seen.add(found[0])
    assert len(seen) > 12
    x, _ = source(augment=False)(0)
    torch.testing.assert_close(x.permute(0, 2, 3, 1) + mean, batches.images[:8, 4:28, 4:28].float(), rtol=0, atol=1e-3)
    again, halves = source()(6)[0], [source(share=lambda i, r=r: i.chunk(2)[r])(6)[0] for r in (0, 1)]
    assert torch.equal(torch.cat(halves), again)


def test_colour_noise_has_the_covariance_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal(100, 20, (50, 6, 6, 1)) + rng.normal(0, 9, (50, 6, 6, 3)), 0, 255).astype(np.uint8)
    stats = statistics(torch.from_numpy(pixels).split(7))
    np.testing.assert_allclose(stats.mean.numpy(), pixels.mean(0), rtol=1e-5)
    expected = np.cov(pixels.reshape(-1, 3).T.astype(float), bias=True)
    made = stats.components.T @ stats.sds.square().diag() @ stats.components
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-4, atol=1e-3)
    drawn = stats.colour(torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)))
    assert drawn.shape == (200_000, 1, 1, 3)
    np.testing.assert_allclose(np.cov(drawn[:, 0, 0].numpy().T), expected, rtol=0.03)
    plain, noisy = source(colour=0.0)(0)[0], source(colour=0.1)(0)[0]
    shift = noisy - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-4)
    assert shift[:, 0, 0, 0].unique().numel() == 8


def test_ten_views() -> None:
    images = torch.arange(2 * 8 * 8 * 3).view(2, 8, 8, 3)
    views = ten_views(images, 6)
    assert views.shape == (10, 2, 6, 6, 3)
    assert torch.equal(views[0], images[:, 1:7, 1:7])
    assert torch.equal(views[4], images[:, 2:, 2:])
    assert torch.equal(views[5:], views[:5].flip(3))
    assert len({view.sum().item() for view in views[:5]}) >= 4


def test_epochs_to_a_training_error_and_top_errors() -> None:
    errors = torch.tensor([[0.9, 0.9], [0.4, 0.9], [0.2, 0.8], [0.3, 0.3]])
    cfg = Config(stage_files=(2,))
    assert epochs_to(0.25, errors, cfg)[0].item() == 1.5
    assert epochs_to(0.25, errors, cfg)[1].isnan()
    p = torch.arange(10.0).expand(3, -1)
    assert top_errors(p, torch.tensor([9, 5, 4])).sum(1).tolist() == [2, 1]


def metrics_of(folder: Path, *arguments: str) -> dict[str, float]:
    with pytest.raises(SystemExit) as stop:
        launch("alexnet", [*arguments, "--device", "cpu", "--output-dir", str(folder)])
    assert stop.value.code == 0
    (record,) = folder.glob("records/*.json")
    return json.loads(record.read_text())["metrics"]


def test_the_pair_of_figure_1_trains_side_by_side(tmp_path: Path) -> None:
    small = ["--preset", "smoke", "--colour", "0", "--stage-epochs", "1", "--stage-files", "2", "--stage-lr", "1"]
    pair = metrics_of(tmp_path / "pair", *small, "--activations", "relu", "tanh", "--lr", "0.001", "0.002")
    alone = metrics_of(tmp_path / "alone", *small, "--activations", "tanh", "--lr", "0.002")
    assert pair["speedup"] == pair["epochs_to_target_tanh"] / pair["epochs_to_target_relu"] == 1
    assert pair["test_nll_tanh"] == pytest.approx(alone["test_nll"], rel=1e-5)
    assert pair["test_nll_relu"] != pair["test_nll_tanh"]


def test_a_real_net_learns_on_generated_strokes(tmp_path: Path) -> None:
    more = ["--stage-epochs", "5", "--stage-files", "4", "--stage-lr", "1", "--train-images", "512", "--lr", "0.003"]
    found = metrics_of(tmp_path, "--preset", "smoke", *more)
    assert found["train_error"] < 75
    assert found["test_error"] < 75


def test_the_imagenet_net_trains_and_is_tested_on_jpeg_files(tmp_path: Path, script) -> None:
    from datasets import ClassLabel, Dataset, Features, Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "hub" / "ILSVRC" / "imagenet-1k" / "data"
    folder.mkdir(parents=True)
    for split, n in (("train", 9), ("validation", 5)):
        rows: dict[str, list] = {"image": [], "label": []}
        for i in range(n):
            file = io.BytesIO()
            shape = (300, 260, 3) if i % 2 else (256, 400, 3)
            PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "JPEG")
            rows["image"].append({"bytes": file.getvalue(), "path": None})
            rows["label"].append(i)
        names = [f"class {i}" for i in range(1000)]
        data = Dataset.from_dict(rows, Features({"image": Image(), "label": ClassLabel(names=names)}))
        data.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    tiny = {
        "train_images": 9, "statistics_images": 9, "test_images": 5, "batch_size": 4, "stage_epochs": 2, "stage_lr": 1,
        "maps": "8 8 8 8 8", "hidden": 16,
    }  # fmt: skip
    words = [word for name, value in tiny.items() for word in (f"--{name.replace('_', '-')}", *str(value).split())]
    words = ["--preset", "table2-1cnn", *words, "--data-dir", str(tmp_path)]
    found = metrics_of(tmp_path / "run", *words)
    assert set(found) == {"top1_error", "top5_error", "top1_error_1view", "top5_error_1view"}
    assert all(value in (0, 20, 40, 60, 80, 100) for value in found.values())
    assert found["top5_error"] <= found["top1_error"]
    done = script("papers.alexnet.train", *words, "--output-dir", str(tmp_path / "two"), processes=2)
    assert done.returncode == 0, done.stderr
    (record,) = (read(path) for path in (tmp_path / "two").glob("records/*.json"))
    assert record.processes == 2
    assert record.metrics == found


def test_imagenet_views() -> None:
    image = PIL.Image.fromarray(np.arange(300 * 400 * 3, dtype=np.uint32).reshape(300, 400, 3).astype(np.uint8))
    whole = square(image)
    assert whole.shape == (256, 256, 3)
    assert square(image.rotate(90, expand=True)).shape == (256, 256, 3)
    crop = random_crop(image, np.random.default_rng(0))
    assert crop.shape == (224, 224, 3)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (224, 224), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    assert any(np.array_equal(w, c) for w in windows.reshape(-1, 224, 224, 3) for c in (crop, crop[:, ::-1]))


# ---- MNIST


def test_the_net_for_mnist_layer_by_layer() -> None:
    maps, numbers = (6, 8, 10, 7, 5), torch.Generator().manual_seed(0)
    ours = MnistNet(maps, 12)
    torch_default(ours, numbers)
    shapes = zip((1, *maps), maps, (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), strict=False)
    convs: list[nn.Module] = []
    for i, (a, b, kernel, stride, padding) in enumerate(shapes):
        convs += [nn.Conv2d(a, b, kernel, stride, padding), nn.ReLU()]
        convs += [nn.MaxPool2d(3, 2, 1)] if i < 2 else [nn.MaxPool2d(2, 2)] if i == 4 else []
    fcs = [nn.Flatten(), nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10)]
    theirs = nn.Sequential(*convs, *fcs)
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        p.data.copy_(q)
    x = torch.randn(4, 1, 32, 32, generator=numbers)
    torch.testing.assert_close(ours(x), theirs(x))
    keep = torch.rand(4, 24, generator=numbers) < 0.5
    hidden = theirs[:-3](x) * keep[:, :12] * 2
    expected = theirs[-1](theirs[-3:-1](hidden) * keep[:, 12:] * 2)
    torch.testing.assert_close(ours(x, keep), expected)
    with torch.device("meta"):
        assert sum(p.numel() for p in MnistNet().parameters()) == 20_329_162


def test_grey_images_are_enlarged_between_their_pixels() -> None:
    image = torch.zeros(2, 4, 4, 1, dtype=torch.uint8)
    image[:, :, 2:] = 200
    assert resized(image, 4).equal(image)
    row = resized(image, 8)[1, 3, :, 0].tolist()
    assert row == [0, 0, 0, 50, 150, 200, 200, 200]


def test_mnist_run_keeps_each_epochs_loss(tmp_path: Path) -> None:
    more = "--dataset synthetic/28x28x1 --train-images 80 --test-images 40 --hidden 32 --stage-epochs 3 --device cpu"
    with pytest.raises(SystemExit) as stop:
        launch("alexnet", ["--preset", "dl-lab-mnist", *more.split(), "--output-dir", str(tmp_path / "run")])
    assert stop.value.code == 0
    record = read(next((tmp_path / "run" / "records").glob("*.json")))
    shown = record.curves["train_loss"][1]  # batches of 64 and of 16
    assert len(shown) == 6
    for epoch in (1, 2, 3):
        mean = (shown[2 * epoch - 2] + shown[2 * epoch - 1]) / 2  # type: ignore[operator]
        assert record.metrics[f"train_loss/epoch{epoch}"] == pytest.approx(mean, rel=1e-5)


def test_a_start_or_optimiser_of_another_net_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for preset, more in (("smoke", ["--optimizer", "adam"]), ("dl-lab-mnist", ["--initial", "normal"])):
        with pytest.raises(SystemExit) as stop:
            launch("alexnet", ["--preset", preset, "--device", "cpu", *more, "--output-dir", str(tmp_path / preset)])
        assert stop.value.code != 0
        assert "has --initial" in capsys.readouterr().err
