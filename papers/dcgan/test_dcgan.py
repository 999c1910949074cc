"""Identity of DCGAN: counts, layers against the plain form, the released script's protocol, the SVM, the pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common.cli import launch
from common.data import images
from common.judging import Nearest
from common.records import read
from common.svm import l2_svm
from papers.dcgan import model as nets
from papers.dcgan.audit import audit
from papers.dcgan.config import PRESETS, Config
from papers.dcgan.data import Minibatches, latents, levels, split
from papers.dcgan.features import fix_statistics, protocol
from papers.dcgan.sample import Sampler, slope_of_ink
from papers.dcgan.train import build, decay, real


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(cfg: Config, side: int, colours: int, sd: float = 0.5) -> tuple[Any, Any]:
    """G and D with weights."""
    nets_of = build(cfg, side, colours)
    for net in nets_of:
        nets.initialise(net, sd, 0, "test")
    return nets_of


def test_counts() -> None:
    counts = audit(None)[0]
    assert (counts["parameters/table3-dcgan/g"], counts["parameters/table3-dcgan/d"]) == (6_820_538, 6_688_202)
    assert (counts["parameters/faces64/g"], counts["parameters/faces64/d"]) == (18_885_760, 17_232_768)
    assert (counts["svm_features"], counts["widest_layer"]) == (28_672, 512)


def test_shapes_of_the_released_weights() -> None:
    """models/imagenet_gan_pretrain_128f_relu_lrelu_7l_3x3_256z of the official code."""
    with torch.device("meta"):
        g, d = pair(PRESETS["table1-imagenet32"], 32, 3)
    assert [tuple(conv.weight.shape) for conv in d.convs] == [
        (128, 3, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3), (512, 512, 3, 3)
    ]  # fmt: skip
    assert [tuple(conv.weight.shape) for conv in g.deconvs][-4:] == [
        (256, 256, 3, 3), (256, 128, 3, 3), (128, 128, 3, 3), (128, 3, 3, 3)
    ]  # fmt: skip
    assert (g.project.weight.numel(), d.score.weight.numel()) == (256 * 8192, 8192)


def test_real_digits_are_judged_as_by_exact_integer_distances(papers_data: Path) -> None:
    """The real-data row of Table 3 (all of it: `repro audit dcgan`) on 500 test digits."""
    digits = images.load("ylecun/mnist", papers_data)
    nearest = Nearest(levels(digits.test[:500], 0).flatten(1))
    nearest.add(levels(digits.train, 0).flatten(1), digits.train_labels)
    test, train = (x.flatten(1).double() for x in (digits.test[:500], digits.train))
    squared = test.square().sum(1, keepdim=True) - 2 * test @ train.T + train.square().sum(1)  # exact in float64
    assert torch.equal(nearest.label, digits.train_labels[squared.argmin(1)])
    torch.testing.assert_close(nearest.distance * 255**2, squared.amin(1), rtol=1e-6, atol=0)


# ---- layers


@pytest.mark.parametrize("kind", ["linear", "conv", "deconv"])
def test_the_label_is_appended_as_constant_maps(kind: str) -> None:
    layer = nets.Labelled(kind, 3, 4, side=6).double()  # type: ignore[arg-type]
    nets.initialise(layer, 0.5, 0, "test")
    h, y = drawn(5, 3, *(() if kind == "linear" else (6, 6))), torch.tensor([0, 9, 3, 3, 1])
    h.requires_grad_()
    one_hot = F.one_hot(y, 10).double()
    if kind == "linear":
        joined = F.linear(torch.cat([h, one_hot], 1), torch.cat([layer.weight, layer.label], 1))
    else:
        both = torch.cat([h, one_hot[:, :, None, None].expand(-1, -1, 6, 6)], 1)
        if kind == "conv":
            joined = F.conv2d(both, torch.cat([layer.weight, layer.label], 1), stride=2, padding=2)
        else:
            joined = F.conv_transpose2d(both, torch.cat([layer.weight, layer.label]), None, 2, 2, 1)
    weights = (h, layer.weight, layer.label)
    expected = torch.autograd.grad(joined.square().sum(), weights)
    found = layer(h, y)
    torch.testing.assert_close(found, joined)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), weights), expected)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (3, 2), (3, 1)])
def test_deconvolution_is_the_gradient_of_a_same_convolution(kernel: int, stride: int) -> None:
    """Theano's `deconv`: the gradient, to its input, of a convolution with border k // 2."""
    g = nets.Generator(nets.norm_layer(False), 2, 3, [(5, stride)], kernel).double()
    h, weight = drawn(2, 3, 4, 4), next(g.deconvs.parameters())
    picture = torch.zeros(2, 5, 4 * stride, 4 * stride, dtype=torch.float64, requires_grad=True)
    small = F.conv2d(picture, weight, stride=stride, padding=kernel // 2)
    (expected,) = torch.autograd.grad(small, picture, h)
    torch.testing.assert_close(g.deconvs[0](h), expected)


def test_normalisation_is_the_codes_on_any_batch() -> None:
    norm = nets.norm_layer()(4).double()
    x = drawn(6, 4, 3, 3)
    x[:, 2] = 7.0  # no variance: eps is 1e-8
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-8).sqrt()
    for mode in (norm.train(), norm.eval()):
        torch.testing.assert_close(mode(x), expected)
    assert isinstance(nets.norm_layer(False)(4), nn.Identity)


@pytest.mark.parametrize("name", ["dcgan", "gan", "conv"])
def test_pictures_have_the_shape_and_levels_of_the_data(name: str) -> None:
    cfg = Config(model=name, width=4, full=16, latents=5)  # type: ignore[arg-type]
    side, colours, low = (32, 3, -1) if name == "conv" else (28, 1, 0)
    g, d = pair(cfg, side, colours)
    x = g(latents(6, 5, torch.device("cpu"), "test"), torch.arange(6))
    assert x.shape == (6, colours, side, side)
    assert g.low == low <= x.min() < x.max() <= 1
    assert d(x, torch.arange(6)).shape == (6,)


def test_the_loss_is_cross_entropy() -> None:
    score = drawn(20)
    one, zero = torch.ones(20).double(), torch.zeros(20).double()
    torch.testing.assert_close(real(score), F.binary_cross_entropy(score.sigmoid(), one))
    torch.testing.assert_close(real(-score), F.binary_cross_entropy(score.sigmoid(), zero))


def test_adam_is_the_codes_with_l2_in_the_gradient() -> None:
    """lib/updates.py: Adam with Regularizer(l2), whose (1 - 1e-8)^(t - 1) on beta1 is one here."""
    p = nn.Parameter(drawn(5))
    w, m, v = p.detach().clone(), torch.zeros(5).double(), torch.zeros(5).double()
    adam = torch.optim.Adam([p], 2e-4, (0.5, 0.999), weight_decay=2.5e-5, fused=True)
    for t in range(1, 5):
        p.grad = drawn(5, seed=t)
        g = p.grad + 2.5e-5 * w
        m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g**2
        w = w - 2e-4 * m / (1 - 0.5**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        adam.step()
        torch.testing.assert_close(p.detach(), w)


# ---- the protocol


def test_an_epoch_sees_every_picture_once_and_ends_with_a_smaller_batch() -> None:
    n = 50
    pictures = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 2, 2, 1)
    batches = Minibatches(pictures, torch.arange(n), 16, seed=3, low=0.0)
    assert batches.per_epoch == 4
    for epoch in range(2):
        seen = [batches(4 * epoch + i) for i in range(4)]
        assert [len(y) for _, y in seen] == [batches.size(i) for i in range(4)] == [16, 16, 16, 2]
        y = torch.cat([y for _, y in seen])
        assert sorted(y.tolist()) == list(range(n))
        assert y.tolist() != list(range(n))
        torch.testing.assert_close(torch.cat([x for x, _ in seen])[:, 0, 0, 0] * 255, y.float())
    assert math.ceil(50_000 / 128) == 391
    found = levels(torch.tensor([0, 51, 255]).view(3, 1, 1, 1), -1).flatten()
    torch.testing.assert_close(found, torch.tensor([-1, -0.6, 1]))


def test_training_and_validation_do_not_meet() -> None:
    x = torch.arange(20)
    (train, _), (held, _) = split(x, x, (12, 5), seed=0)
    assert (len(train), len(held)) == (12, 5)
    assert not set(train.tolist()) & set(held.tolist())
    assert not torch.equal(train, split(x, x, (12, 5), seed=1)[0][0])


def test_the_rate_falls_as_the_script_lowers_it() -> None:
    lr, expected = 1.0, []
    for epoch in range(1, 201):  # train_cond_dcgan.py counts epochs up, then lowers the rate for the next one
        expected.append(lr)
        if epoch > 100:
            lr -= 1 / 100
    assert [decay(Config(), epoch) for epoch in range(200)] == pytest.approx(expected)
    assert decay(PRESETS["table1-imagenet32"], 29) == 1


def test_g_and_d_take_turns(tmp_path: Path) -> None:
    arguments = ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run"), "--path-pairs", "40"]
    with pytest.raises(SystemExit) as stop:
        launch("dcgan", arguments)
    assert stop.value.code == 0
    (path,) = (tmp_path / "run").glob("checkpoints/*/state.pt")
    state = torch.load(path, weights_only=True)
    turns = [state[name]["state"][0]["step"].item() for name in ("g_adam", "d_adam")]
    assert turns == [7, 7]  # two epochs of seven batches
    (record,) = (read(path) for path in (tmp_path / "run/records").glob("*.json"))
    assert {"g_loss", "d_loss", "validation_nn_error"} <= record.curves.keys()
    assert record.curves["validation_nn_error"][0] == [6, 13]
    judged = [name for name in record.metrics if "classifier" in name]
    assert len(judged) == 6
    assert f"classifier/{judged[0].removeprefix('fid_').split('_u8')[0]}" in record.data
    for name, columns, rows in (("grid", 20, 10), ("walk", 20, 10), ("arithmetic", 14, 10), ("samples/000007", 20, 10)):
        assert Image.open(tmp_path / f"run/{name}.png").size == (28 * columns, 28 * rows)


def test_a_sample_depends_on_its_batch_and_on_nothing_drawn_before() -> None:
    cfg = Config(width=4, full=16, latents=5)
    g, _ = pair(cfg, 28, 1)
    one, two = (Sampler(g, 5, 10, 32, seed, torch.device("cpu")) for seed in (0, 1))
    x, y = one("test", slice(64, 96))
    one("test", slice(0, 32))
    assert torch.equal(x, one("test", slice(64, 96))[0])
    assert not torch.equal(x, two("test", slice(64, 96))[0])
    assert not torch.equal(x, one("other", slice(64, 96))[0])
    assert len(set(y.tolist())) > 3  # mixed labels
    assert g.training
    z = latents(32, 5, torch.device("cpu"), "z")
    assert not torch.allclose(one.draw(z, y)[:8], one.draw(z[:8], y[:8]), atol=1e-3)  # statistics of the batch


def test_ink_leans_as_it_was_drawn() -> None:
    x = torch.zeros(3, 1, 9, 9)
    for i in range(9):
        x[0, 0, i, 4] = x[1, 0, 8 - i, i] = x[2, 0, i, i] = 1
    assert slope_of_ink(x).tolist() == pytest.approx([0, 1, -1], abs=1e-5)


# ---- features and the SVM


def test_features_are_pooled_maps_and_statistics_are_means_over_batches() -> None:
    _, d = pair(Config(model="conv", width=4, bn_affine=True), 32, 3, sd=0.2)
    batches = [torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    fix_statistics(d, batches)
    first = F.leaky_relu(d.convs[0](torch.cat(batches)), 0.2)
    means = torch.stack([h.mean((0, 2, 3)) for h in d.convs[1](first).split(8)])
    torch.testing.assert_close(d.norms[1].running_mean, means.mean(0))
    found = d.features(batches[0])
    assert found.shape == (8, 28_672 // 32)
    pooled = [F.max_pool2d(h, h.shape[-1] // 4).flatten(1) for h in d.maps(batches[0])]
    assert torch.equal(found, torch.cat(pooled, 1))
    torch.testing.assert_close(d.features(batches[0][:2]), found[:2])  # fixed: the batch does not matter


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_svm_minimises_its_objective(c: float) -> None:
    x, y = torch.cat([drawn(60, 5), torch.ones(60, 1).double()], 1), torch.arange(60) % 3
    x[:, 0] += y
    w = l2_svm(x, y, c, classes=3, tolerance=1e-8)
    for k in range(3):
        t = np.where(y == k, 1.0, -1.0)

        def objective(v: np.ndarray, t: np.ndarray = t) -> float:
            return 0.5 * v @ v + c * (np.maximum(0, 1 - t * (x.numpy() @ v)) ** 2).sum()

        best = scipy.optimize.minimize(objective, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
        np.testing.assert_allclose(w[:, k], best, atol=1e-5)


def test_the_protocol_chooses_c_without_the_test_pictures() -> None:
    def part(n: int, seed: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(n) % 4
        return torch.cat([drawn(n, 6, seed=seed) + 3 * F.one_hot(y, 6), torch.ones(n, 1)], 1), y

    train, test = part(400, 1), part(200, 2)
    found = protocol(train, test, (1e-4, 1e-1), 20, 3, seed=0)
    assert found["svm_accuracy"] > 90
    assert found["svm_accuracy"] > found["svm_accuracy_20_per_class"] > 50
    assert found["svm_features"] == 6
    upset = protocol(train, (test[0], (test[1] + 1) % 4), (1e-4, 1e-1), 20, 3, seed=0)
    assert upset["svm_accuracy"] < 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "conv"], "model conv draws 32x32x3, the pictures are 28x28x1"),
        (["--train-images", "600"], "600 training and 64 validation pictures of 512"),
        (["--batch-size", "441"], "a batch of 441 from 440 pictures"),
        (["--model", "cnn"], "model"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("dcgan", ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run"), *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
