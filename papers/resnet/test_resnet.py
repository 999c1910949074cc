"""Identity of the residual networks: counts, a reference library, block identities, the warm-up rule, streams."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common.cli import launch
from common.errors import UserError
from common.records import Record, read
from papers.resnet.audit import audit
from papers.resnet.config import PRESETS, Config
from papers.resnet.data import ten_views, training_view, whole_view
from papers.resnet.model import Block, ResNet, Shortcut
from papers.resnet.train import TrainingError


def net(depth: int = 8, *more: Any, **options: Any) -> Any:
    """A net in double precision whose normalisations do something."""
    made = ResNet(depth, *more, **options)
    made.initialise(0)
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in made.state_dict().items():
            if ".running_var" in name or (values.ndim == 1 and name.endswith("weight")):
                values.uniform_(0.5, 1.5, generator=numbers)
            elif values.ndim == 1:
                values.normal_(0, 0.1, generator=numbers)
    return made.double()


def pictures(n: int, side: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def run(folder: Path, *arguments: str) -> Record:
    with pytest.raises(SystemExit) as stop:
        launch("resnet", ["--device", "cpu", "--output-dir", str(folder), *arguments])
    assert stop.value.code == 0
    return read(next(folder.glob("records/*.json")))


# ---- Counts, and the reference library


def test_counts_of_the_paper() -> None:
    counts = audit(None)[0]
    parameters = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
    assert {depth: counts[f"parameters/resnet{depth}"] for depth in parameters} == parameters
    for name in ("layers_minus_6n_2", "shortcuts_minus_3n", "plain_minus_residual_parameters"):
        assert counts[name] == 0
    table_1 = {"18A": 1.8, "34A": 3.6, "101": 7.6, "152": 11.3}
    for name, printed in table_1.items():
        assert round(counts[f"billion_multiply_adds/resnet{name}"], 1) == printed
    assert counts["billion_multiply_adds/resnet50"] == pytest.approx(3.858, abs=5e-4)  # printed as 3.8
    assert [counts[f"layers/resnet{name}"] for name in ("18A", "34A", "50", "101", "152")] == [18, 34, 50, 101, 152]
    assert counts["parameters/resnet50"] == 25_557_032  # torchvision's
    assert sum(p.numel() for p in ResNet(20, shortcut="B").parameters()) == 269_722 + 2_752
    with pytest.raises(UserError, match=r"6n \+ 2"):
        ResNet(21)


def mapped(ours: dict[str, torch.Tensor], depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Our weights under transformers' names."""
    per_stage = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    place = [(stage, i) for stage, n in enumerate(per_stage) for i in range(n)]
    for name, value in ours.items():
        parts = name.split(".")
        if parts[0] == "head":
            yield f"classifier.1.{parts[1]}", value
            continue
        if parts[0] == "stem":
            where, kind = "embedder.embedder", parts[1]
        else:
            stage, i = place[int(parts[1])]
            where = f"encoder.stages.{stage}.layers.{i}." + (
                "shortcut" if parts[2] == "shortcut" else f"layer.{parts[3]}"
            )
            kind = parts[3] if parts[2] == "shortcut" else {"convolutions": "0", "norms": "1"}[parts[2]]
        yield f"resnet.{where}.{'convolution' if kind == '0' else 'normalization'}.{parts[-1]}", value


@pytest.mark.parametrize(("depth", "channels", "side"), [(18, 3, 33), (50, 3, 33), (18, 1, 28)])
def test_imagenet_nets_are_the_reference_librarys(depth: int, channels: int, side: int) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    bottleneck = depth == 50
    config: Any = ResNetConfig(
        depths=[3, 4, 6, 3] if bottleneck else [2, 2, 2, 2],
        hidden_sizes=[256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
        layer_type="bottleneck" if bottleneck else "basic",
        downsample_in_bottleneck=True,  # the stride in the first 1x1 convolution, as in the paper
        num_channels=channels,
    )
    config.num_labels = 10
    theirs = ResNetForImageClassification(config).double()
    ours = net(depth, "imagenet", "B", channels=channels, group=None)
    found = theirs.load_state_dict(dict(mapped(ours.state_dict(), depth)), strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    x = pictures(3, side)[:, :channels]
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x).logits)
    gradients = []
    for model, logits in ((ours.train(), ours(x)), (theirs.train(), theirs(x).logits)):
        logits.square().sum().backward()
        gradients.append(dict(model.named_parameters()))
    expected = {name: p.grad for name, p in gradients[1].items()}
    for name, gradient in mapped({name: p.grad for name, p in gradients[0].items()}, depth):
        torch.testing.assert_close(gradient, expected[name])


# ---- What the paper promises of blocks


@pytest.mark.parametrize(("stride", "shortcut"), [(1, "A"), (2, "A"), (2, "B"), (1, "C")])
def test_a_block_whose_branch_is_zero_is_its_shortcut(stride: int, shortcut: Shortcut) -> None:
    block: Any = Block(4, [(3, 4 * stride), (3, 4 * stride)], stride, shortcut, None)
    torch.nn.init.zeros_(block.norms[-1].weight)
    x = torch.randn(5, 4, 8, 8)
    y = block(x)
    assert block.shortcut is not None
    if shortcut == "A":
        expected = torch.zeros(5, 4 * stride, 8 // stride, 8 // stride)
        expected[:, :4] = x[:, :, ::stride, ::stride]
        assert not list(block.shortcut.parameters())
    else:
        expected = block.shortcut(x)
    torch.testing.assert_close(y, expected.relu())


def test_a_plain_net_is_the_residual_net_without_its_additions() -> None:
    residual, plain = net(), net(shortcut=None)
    assert residual.state_dict().keys() == plain.state_dict().keys()
    x = pictures(4)
    assert not torch.allclose(residual(x), plain(x))
    for block in residual.stages:
        block.shortcut = None
    assert torch.equal(residual(x), plain(x))


class HalfBefore(torch.nn.Module):
    """Option A with half of the zero channels in front."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


def test_the_place_of_the_zero_channels_is_a_matter_of_numbering() -> None:
    ours, other = net(14), net(14)
    number = {16: list(range(16))}  # channel j of the other net's stream is channel number[width][j] of ours
    for width in (32, 64):
        new, old = list(range(width // 2, width)), number[width // 2]
        number[width] = new[: width // 4] + old + new[width // 4 :]
    with torch.no_grad():
        for i, (mine, theirs) in enumerate(zip(ours.stages, other.stages, strict=True)):
            width = 16 * 2 ** (i // 2)
            before = number[width // 2 if i in (2, 4) else width]
            theirs.convolutions[0].weight.copy_(mine.convolutions[0].weight[:, before])
            theirs.convolutions[1].weight.copy_(mine.convolutions[1].weight[number[width]])
            for name, value in mine.norms[1].state_dict().items():
                theirs.norms[1].state_dict()[name].copy_(value[number[width]])
            if i in (2, 4):
                theirs.shortcut = HalfBefore()
        other.head.weight.copy_(ours.head.weight[:, number[64]])
    x = pictures(4)
    torch.testing.assert_close(ours(x), other(x))


def test_scales_of_images_and_weights_do_not_matter() -> None:
    def measured(image_scale: float, weight_scale: float) -> list[torch.Tensor]:
        model = net()
        for name, p in model.named_parameters():
            if p.ndim == 4:
                p.data *= weight_scale if "stages" in name else 1.0
        for module in model.modules():
            if hasattr(module, "eps"):
                module.eps = 1e-12
        logits = model(image_scale * pictures(4))
        logits.square().sum().backward()
        return [logits, *(p.grad * (weight_scale if "convolutions" in n else 1) for n, p in model.named_parameters())]

    for other in (measured(255.0, 1.0), measured(1.0, 3.0)):
        for a, b in zip(measured(1.0, 1.0), other, strict=True):
            torch.testing.assert_close(a, b)


def test_ghost_batches_are_the_papers_two_gpus() -> None:
    x = pictures(8)
    both, one = net(group=4), net(group=None)
    y = both(x)
    assert torch.equal(y[:4], one(x[:4]))
    assert torch.equal(y[4:], net(group=None)(x[4:]))
    torch.testing.assert_close(net(group=4).eval()(x), net(group=None).eval()(x))


def test_responses_are_what_leaves_the_normalisation_of_each_3x3_layer() -> None:
    model, x = net(14).eval(), pictures(6)
    found = model.responses(x)
    assert found.shape == (13, 2, 6)  # 6n + 1: all but the fully connected layer
    block = model.stages[0]
    y = block.norms[0](block.convolutions[0](model.stem(x)))
    spread = (found[1, 1].mean() - found[1, 0].mean().square()).sqrt()
    torch.testing.assert_close(spread, y.std(correction=0).detach())
    assert not any(module._forward_hooks for module in model.modules())


def test_larger_images_are_tested_fully_convolutionally() -> None:
    model, x = net().eval(), pictures(2, 48)
    maps = model.stages(model.stem(x))  # (b, c, h, w)
    everywhere = F.conv2d(maps, model.head.weight[:, :, None, None], model.head.bias)
    torch.testing.assert_close(model(x), everywhere.mean((2, 3)))


def test_initial_weights_have_the_spread_asked_for() -> None:
    for fan, side in (("fan-in", 1), ("fan-out", 0)):
        made = ResNet(18, "imagenet", "B", 10, 1)
        made.initialise(0, fan)  # type: ignore[arg-type]
        for module in made.modules():
            if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 10_000:
                n = module.weight.shape[side] * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx((2 / n) ** 0.5, rel=0.05)
    assert made.head.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)  # of fan-out: torch's default
    assert 0.5 < made.head.bias.abs().max().item() * 512**0.5 <= 1


# ---- Training


def test_the_warm_up_ends_when_the_error_falls_and_lives_in_the_state() -> None:
    cfg = Config(train_steps=400, lr_drops=(200, 300), warmup_lr=0.01, error_window=10)
    surroundings: Any = SimpleNamespace(device=torch.device("cpu"), mean=lambda value: value)
    errors = TrainingError(cfg, surroundings, per_epoch=20)
    y = torch.zeros(100, dtype=torch.int64)
    rates = {}
    for step in range(400):
        if step == 47:  # as a resumed run would
            saved = {name: value.clone() for name, value in errors.state.items()}
            errors = TrainingError(cfg, surroundings, per_epoch=20)
            errors.state.update(saved)
        rates[step] = cfg.lr * errors.multiplier(step)
        wrong = max(5, 100 - step // 2)  # percent
        logits = F.one_hot((torch.arange(100) < wrong).long(), 2).float()
        errors.add(step, torch.tensor(1.0), logits, y)
    assert errors.final() == pytest.approx(
        {"train_loss": 1.0, "train_error": 5.0, "converging_steps": 30, "warmup_steps": 50}
    )
    assert [rates[step] for step in (0, 49, 50, 199, 200, 300)] == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.001])


def test_presets_are_the_papers() -> None:
    assert PRESETS["table6-resnet20"] == Config()
    assert {p.warmup_lr for name, p in PRESETS.items() if "110" in name} == {0.0, 0.01}
    assert PRESETS["table6-resnet110"].warmup_lr == 0.01
    assert {p.train_steps for name, p in PRESETS.items() if name.startswith(("table6", "fig6"))} == {64_000}
    assert PRESETS["table6-resnet56-45k"].train_images == 45_000
    assert PRESETS["rasbt-mnist-resnet18"].train_steps == 10 * 469  # with the smaller batch of 96 at each epoch's end


def test_smoke_learns_when_it_goes_on(tmp_path: Path) -> None:
    more = ["--preset", "smoke", "--train-steps", "40", "--lr-drops", "35", "--warmup-error", "101"]
    record = run(tmp_path / "run", *more)
    losses = record.curves["train_loss"][1]
    assert losses[-1] < 0.8 * losses[0]  # type: ignore[operator]
    assert record.metrics["warmup_steps"] == 2
    assert {f"response_std/{i}" for i in range(1, 8)} < record.metrics.keys()


def test_the_smaller_last_batch_of_an_epoch_is_kept(tmp_path: Path) -> None:
    record = run(
        tmp_path / "run", "--preset", "rasbt-mnist-resnet18", "--dataset", "synthetic/28x28x1", "--train-images", "80",
        "--batch-size", "32", "--train-steps", "12", "--clean-images", "80",
    )  # fmt: skip
    losses = record.curves["train_loss"][1]
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]  # type: ignore[operator]
    assert record.metrics["train_accuracy_clean"] + record.metrics["train_error_clean"] == 100  # type: ignore[operator]


# ---- ImageNet


def test_views() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8))
    for view in (training_view(32, (36, 48), 0.0), training_view(32, (36, 48), 0.1)):
        x, again = (view(image, np.random.default_rng(7)) for _ in range(2))
        assert x.shape == (32, 32, 3)
        assert x.dtype == np.uint8
        assert np.array_equal(x, again)
        assert not np.array_equal(x, view(image, np.random.default_rng(8)))
    ten = ten_views(32, 40)(image, rng)
    assert ten.shape == (10, 32, 32, 3)
    whole = whole_view(40)(image, rng)
    assert whole.shape == (2, 50, 40, 3)
    assert np.array_equal(ten[0], whole[0, :32, :32])
    assert np.array_equal(ten[3], whole[0, -32:, -32:])
    assert np.array_equal(ten[4], whole[0, 9:41, 4:36])
    assert np.array_equal(ten[5:], ten[:5, :, ::-1])
    assert np.array_equal(whole[1], whole[0, :, ::-1])


def test_an_imagenet_preset_runs_on_streamed_files(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=1000)})
    folder = tmp_path / "hub" / "ILSVRC" / "imagenet-1k" / "data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", 9), ("validation", 5)):
        rows = []
        for i in range(n):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (50 + i, 60, 3), dtype=np.uint8)).save(file, "JPEG")
            rows.append({"bytes": file.getvalue(), "path": None})
        made = datasets.Dataset.from_dict({"image": rows, "label": [i * 100 for i in range(n)]}, features=features)
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    record = run(
        tmp_path / "run", "--preset", "table2-resnet18", "--data-dir", str(tmp_path), "--train-images", "9",
        "--test-images", "5", "--batch-size", "4", "--group", "2", "--train-steps", "3", "--crop", "32",
        "--scales", "36", "48", "--mean-images", "6", "--test-scales", "32", "40",
    )  # fmt: skip
    for view in ("1-crop", "10-crop", "multi-scale"):
        assert record.metrics[f"top1_error/{view}"] >= record.metrics[f"top5_error/{view}"]  # type: ignore[operator]
    assert list(record.data) == ["ILSVRC/imagenet-1k"]
