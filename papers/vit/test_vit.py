"""Identity of the Vision Transformer: counts, the reference library, Pillow, promises, the path of ImageNet."""

import io
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from PIL import ImageEnhance, ImageOps

from common.cli import launch
from common.data.augment import PerSample, boxes
from common.errors import UserError
from common.records import Record, read
from common.threads import on_threads
from papers.vit import analysis, weights
from papers.vit.audit import audit, build
from papers.vit.augment import OP, Augment, AutoAugment, RandAugment, apply, mixing, resized
from papers.vit.config import PRESETS, Config, shape
from papers.vit.gelu import Looked, Together, gelu
from papers.vit.model import ResidualUnit, StdConv, ViT, interpolated, same
from papers.vit.train import cross_entropy, schedule

SMALL = {"resolution": 32, "patch": 8, "d": 24, "depth": 3, "heads": 2, "mlp": 48, "classes": 10}


def small(seed: int = 0, **changes: object) -> ViT:
    model = ViT(**{**SMALL, **changes})  # type: ignore[arg-type]
    model.initialise(torch.Generator().manual_seed(seed))
    torch.nn.init.normal_(model.head.weight, 0.0, 0.1, torch.Generator().manual_seed(seed))
    return model.eval()


def trained(folder: Path, *arguments: str) -> Record:
    with pytest.raises(SystemExit) as stop:
        launch("vit", ["--device", "cpu", "--output-dir", str(folder), *arguments])
    assert stop.value.code == 0
    return read(next(folder.glob("records/*.json")))


# ---- counts


@pytest.fixture(scope="module")
def counts() -> dict[str, float]:
    return audit(None)[0]


def test_official_parameter_counts(counts: dict[str, float]) -> None:
    official = {  # models_test.py
        "ti16": 5_717_416, "s16": 22_050_664, "s32": 22_878_952, "b8": 86_576_872, "b16": 86_567_656,
        "b32": 88_224_232, "l16": 304_326_632, "l32": 306_535_400, "h14": 632_045_800, "r50-b16": 98_659_112,
        "r50-l32": 328_994_856, "r26-b32": 101_383_976, "r26-s32": 36_431_912,
    }  # fmt: skip
    assert {name: counts[f"parameters/{name}"] for name in official} == official
    assert counts["parameters-without-head/b16"] == 85_798_656
    assert counts["tokens/b16"] == 196 + 1
    assert counts["exaflops/h14-14"] == pytest.approx(4258.0, abs=0.05)
    with torch.device("meta"):
        pooled = build(shape("b16", Config(pool="mean")))
    assert sum(p.numel() for p in pooled.parameters()) == 86_566_120  # ViT-B_16-gap-norep
    assert round(counts["millions/ct-vit-lite-7-4"], 3) == 3.717


def test_multiply_adds_by_hand(counts: dict[str, float]) -> None:
    n, d, mlp, layers = 197, 768, 3072, 12
    blocks = layers * (n * (4 * d * d + 2 * d * mlp) + 2 * n * n * d)
    assert counts["gmacs/b16"] * 1e9 == blocks + 196 * 16 * 16 * 3 * d + d * 1000


def test_trends_are_compared_at_equal_compute(counts: dict[str, float]) -> None:
    for scale in ("cifar", "laptop"):
        assert 0.9 < counts[f"gmacs/{scale}-cnn"] / counts[f"gmacs/{scale}-1d"] <= 1.0


# ---- against the reference


def test_equals_transformers_with_mapped_weights() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    d, depth = SMALL["d"], SMALL["depth"]
    config = ViTConfig(  # type: ignore[call-arg]
        hidden_size=d, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=48, image_size=32,
        patch_size=8, num_labels=10, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p))
    state = theirs.state_dict()
    ours, mapped = small(), {}
    for k, v in state.items():
        k = k.removeprefix("vit.")
        for old, new in (
            ("embeddings.cls_token", "class_token"), ("embeddings.position_embeddings", "tables.0"),
            ("embeddings.patch_embeddings.projection", "embedding"), ("encoder.layer.", "blocks."),
            ("layers.", "blocks."),
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("attention.output.dense", "attention.out"),
            ("attention.o_proj", "attention.out"), ("attention.attention.", "attention."),
            ("intermediate.dense", "mlp1"), ("output.dense", "mlp2"), ("mlp.fc1", "mlp1"), ("mlp.fc2", "mlp2"),
            ("layernorm.", "norm."), ("classifier", "head"), ("q_proj", "query"),
            ("k_proj", "key"), ("v_proj", "value"),
        ):  # fmt: skip
            k = k.replace(old, new)
        mapped[k] = v
    for i in range(int(depth)):
        for kind in ("weight", "bias"):
            parts = [mapped.pop(f"blocks.{i}.attention.{part}.{kind}") for part in ("query", "key", "value")]
            mapped[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    ours.load_state_dict(mapped)
    x, y = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    mine, reference = ours(x), theirs(x).logits
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
    F.cross_entropy(mine, y).backward()
    F.cross_entropy(reference, y).backward()
    torch.testing.assert_close(
        ours.embedding.weight.grad, theirs.get_input_embeddings().projection.weight.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("positions", ["none", "1d", "2d", "relative"])
@pytest.mark.parametrize("dialect", ["vision-transformer", "compact-transformers", "vit-cifar", "vit-pytorch", "torch"])
def test_attention_by_hand(positions: str, dialect: str) -> None:
    model = small(positions=positions, dialect=dialect)
    attention, z = model.encoder[0].attention, torch.randn(2, model.tokens, 24)
    q, k, v = attention.qkv(z).chunk(3, -1)
    a = attention.weights(z)
    heads = []
    for h in range(2):
        part = slice(12 * h, 12 * (h + 1))
        logits = q[..., part] @ k[..., part].mT
        if attention.distances is not None:
            for i in range(model.tokens):
                for j in range(model.tokens):
                    logits[:, i, j] += q[:, i, part] @ attention.distances[i - j + model.tokens - 1]
        weight = (logits / math.sqrt(24 if dialect == "vit-cifar" else 12)).softmax(-1)
        torch.testing.assert_close(a[:, h], weight)
        heads.append(weight @ v[..., part])
    torch.testing.assert_close(attention(z), attention.out(torch.cat(heads, -1)), rtol=1e-4, atol=1e-5)


def test_a_block_of_torchs_dialect_is_torchs_own_layer() -> None:
    model = small(dialect="torch")
    block, z = model.encoder[1], torch.randn(3, model.tokens, 24)
    theirs = torch.nn.TransformerEncoderLayer(24, 2, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "norm1": "norm1", "norm2": "norm2", "attention.out": "self_attn.out_proj", "mlp1": "linear1", "mlp2": "linear2",
        "attention.qkv": "self_attn.in_proj",
    }  # fmt: skip
    ours, found = block.state_dict(), {}
    for name, other in names.items():
        for kind in ("weight", "bias"):
            found[other + ("_" if other.endswith("in_proj") else ".") + kind] = ours[f"{name}.{kind}"]
    theirs.load_state_dict(found)
    torch.testing.assert_close(block(z), theirs(z), rtol=1e-4, atol=1e-5)
    widest = {name: p.abs().max().item() for name, p in block.named_parameters() if "norm" not in name}
    assert widest["attention.qkv.bias"] == widest["attention.out.bias"] == 0
    assert widest["attention.qkv.weight"] == pytest.approx((6 / 96) ** 0.5, rel=0.02)
    for name in ("attention.out.weight", "mlp1.weight", "mlp1.bias"):
        assert widest[name] == pytest.approx(24**-0.5, rel=0.1)


def test_gelu_looked_up_is_gelu() -> None:
    """At every bfloat16 there is; the derivative, rounded before it is multiplied, within that rounding."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    x = bits[bits.isfinite()].requires_grad_()
    true = x.detach().double().requires_grad_()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    y, expected = gelu(x, "tanh"), F.gelu(true, approximate="tanh")
    assert y.grad_fn is not None
    assert type(y.grad_fn).__name__ == f"{Looked.__name__}Backward"
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-6)
    (slope,), (slope_expected,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, true, dy.double())
    torch.testing.assert_close(slope.double(), slope_expected, rtol=2**-7, atol=1e-5)
    assert gelu(torch.tensor([math.nan]).bfloat16(), "tanh").isnan().all()
    assert torch.equal(gelu(x, "none"), F.gelu(x))


def test_gelu_with_its_derivative_is_gelu() -> None:
    wide = torch.cat([torch.linspace(-12, 12, 150_001), torch.tensor([-1e4, -30, 0, 30, 1e4])])
    x = wide.requires_grad_()
    true = x.detach().double().requires_grad_()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y, expected = gelu(x, "tanh"), F.gelu(true, approximate="tanh")
    assert y.grad_fn is not None
    assert type(y.grad_fn).__name__ == f"{Together.__name__}Backward"
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)
    (slope,), (slope_expected,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, true, dy.double())
    torch.testing.assert_close(slope.double(), slope_expected, rtol=1e-5, atol=1e-5)
    assert gelu(torch.tensor([math.nan]), "tanh").isnan().all()
    with on_threads(3):
        assert torch.equal(gelu(x, "tanh"), y)
    assert torch.equal(gelu(wide.double(), "tanh"), expected)


def test_standardised_convolution_and_same_padding() -> None:
    conv = StdConv(3, 5, 3, 2)
    w = conv.weight.detach().numpy().astype(np.float64)
    w = (w - w.mean((1, 2, 3), keepdims=True)) / (w.std((1, 2, 3), keepdims=True) + 1e-5)
    x = torch.randn(2, 3, 8, 8)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.from_numpy(w).float(), stride=2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)
    assert same(torch.zeros(1, 1, 224, 224), 7, 2).shape[-1] == 224 + 5
    unit = ResidualUnit(64, 16, 1)  # the last gain starts at zero: the unit is its shortcut
    torch.nn.init.zeros_(unit.gn3.weight)
    x = torch.rand(2, 64, 4, 4)
    torch.testing.assert_close(unit(x), x)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (14, 24), (8, 3)])
def test_position_table_is_stretched_as_the_code_does(old: int, new: int) -> None:
    scipy_zoom = pytest.importorskip("scipy.ndimage").zoom
    table = torch.randn(1, old * old + 1, 6)
    grid = table[0, 1:].reshape(old, old, 6).numpy()
    expected = scipy_zoom(grid, (new / old, new / old, 1), order=1).reshape(new * new, 6)
    found = interpolated(table, new * new + 1)
    np.testing.assert_allclose(found[0, 1:].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[:, :1], table[:, :1])


def test_the_codes_weights_are_read(tmp_path: Path) -> None:
    ours, d, heads = small(3), 24, 2
    arrays = {
        "cls": ours.class_token, "Transformer/posembed_input/pos_embedding": ours.tables[0],
        "embedding/kernel": ours.embedding.weight.permute(2, 3, 1, 0), "embedding/bias": ours.embedding.bias,
        "Transformer/encoder_norm/scale": ours.norm.weight, "Transformer/encoder_norm/bias": ours.norm.bias,
        "head/kernel": torch.zeros(d, 1000), "head/bias": torch.zeros(1000),
        "pre_logits/kernel": torch.zeros(d, d), "pre_logits/bias": torch.zeros(d),
    }  # fmt: skip
    for i, block in enumerate(ours.encoder):
        start, attention = f"Transformer/encoderblock_{i}/", block.attention
        for part, w, b in zip(
            ("query", "key", "value"), attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True
        ):
            arrays[f"{start}MultiHeadDotProductAttention_1/{part}/kernel"] = w.T.reshape(d, heads, d // heads)
            arrays[f"{start}MultiHeadDotProductAttention_1/{part}/bias"] = b.reshape(heads, d // heads)
        arrays[f"{start}MultiHeadDotProductAttention_1/out/kernel"] = attention.out.weight.T.reshape(heads, -1, d)
        arrays[f"{start}MultiHeadDotProductAttention_1/out/bias"] = attention.out.bias
        for name, layer in (("MlpBlock_3/Dense_0", block.mlp1), ("MlpBlock_3/Dense_1", block.mlp2)):
            arrays |= {f"{start}{name}/kernel": layer.weight.T, f"{start}{name}/bias": layer.bias}
        for name, norm in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            arrays |= {f"{start}{name}/scale": norm.weight, f"{start}{name}/bias": norm.bias}
    np.savez(tmp_path / "x.npz", **{k: v.detach().numpy() for k, v in arrays.items()})
    tuned, x = small(4), torch.randn(2, 3, 32, 32)
    weights.load(tuned, tmp_path / "x.npz")
    torch.testing.assert_close(tuned.features(x), ours.features(x))
    assert not torch.equal(tuned.head.weight, ours.head.weight)
    weights.load(small(resolution=64), tmp_path / "x.npz")  # more patches
    torch.save({"model": ours.state_dict()}, tmp_path / "x.pt")
    weights.load(tuned, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds another network"):
        weights.load(small(depth=2), tmp_path / "x.npz")
    with pytest.raises(UserError, match="are not there"):
        weights.load(tuned, tmp_path / "y.npz")


# ---- what the paper promises


@pytest.mark.parametrize(
    ("positions", "invariant"), [("none", True), ("1d", False), ("2d", False), ("relative", False)]
)
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_without_positions_the_order_of_patches_does_not_matter(positions: str, invariant: bool, pool: str) -> None:
    model = small(positions=positions, pool=pool)
    with torch.no_grad():
        for table in [*model.tables, *(b.attention.distances for b in model.encoder)]:
            if table is not None:
                table.mul_(50)
    x = torch.randn(2, 3, 32, 32)
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, torch.randperm(16)]
    shuffled = patches.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 32, 32)
    assert torch.allclose(model(x), model(shuffled), atol=1e-5) == invariant


def test_two_dimensional_positions_know_rows_and_columns() -> None:
    grid = small(positions="2d").position_table()[0, 1:].view(4, 4, 24)
    assert torch.equal(grid[0, :, :12], grid[3, :, :12])  # the column's half
    assert torch.equal(grid[:, 0, 12:], grid[:, 3, 12:])  # the row's
    assert len(small(position_layers="every").tables) == 3
    assert len(small(position_layers="shared").tables) == 1


def test_rollout_and_attention_distance() -> None:
    model, x = small(), torch.randn(2, 3, 32, 32)
    seen = model.attentions(x)
    assert [tuple(a.shape) for a in seen] == [(2, 2, 17, 17)] * 3
    torch.testing.assert_close(analysis.rollout(seen).sum(-1), torch.ones(2, 17))
    uniform, own = torch.full((1, 2, 17, 17), 1 / 17), torch.eye(17).expand(1, 2, 17, 17)
    found = analysis.attention_distance(model, [uniform, own])  # (1, layers, heads)
    assert found[0, 0, 0] == pytest.approx(float(analysis.distances(4, 8).mean()))
    assert found[0, 1].tolist() == [0, 0]
    torch.testing.assert_close(analysis.rollout([own]), torch.eye(17)[None])


def test_the_head_starts_at_zero_and_schedules_are_the_codes() -> None:
    model = ViT(**SMALL)  # type: ignore[arg-type]
    model.initialise(torch.Generator().manual_seed(0))
    assert not model.head.weight.any()
    fine = schedule(PRESETS["table5-jft-h14-cifar10"])
    assert [fine(0), fine(250), fine(500), fine(10_000)] == pytest.approx([0, 0.5, 1, 0])
    lite = schedule(PRESETS["ct-vit-lite-7-4"])
    assert [lite(390 * e) for e in (0, 1, 4, 5)] == pytest.approx([0.2, 0.25, 1, 1])
    cifar = schedule(PRESETS["vit-cifar"])
    assert [cifar(390 * e) for e in (0, 1, 5, 6)] == pytest.approx([0, 0.2, 1, 1])
    assert cifar(390 * 206) == pytest.approx(0.01)
    torch_decay = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], 1.0), 200)
    late = schedule(PRESETS["kentaroy47-200"])
    torch_decay.last_epoch = 10
    assert late(97 * 12) == pytest.approx(torch_decay._get_closed_form_lr()[0])


def test_smoothing_over_the_other_classes() -> None:
    logits, y = torch.randn(5, 10), torch.arange(5)
    target = torch.full((5, 10), 0.1 / 9).scatter_(1, y[:, None], 0.9)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(PRESETS["vit-cifar"], logits, y), expected)


# ---- augmentation, pixel by pixel


def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    small = [PIL.Image.fromarray(p) for p in rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)]
    smooth = [p.resize((32, 32), PIL.Image.Resampling.BICUBIC) for p in small]
    flat, noise = np.full((2, 32, 32, 3), 7), rng.integers(0, 256, (2, 32, 32, 3))
    flat[1, :16] = 9
    return np.concatenate([np.stack([np.asarray(p) for p in smooth]), flat, noise, noise // 16 + 100]).astype(np.uint8)


def _affine(a: tuple[float, ...], how: PIL.Image.Resampling = PIL.Image.Resampling.NEAREST):
    grey = (128, 128, 128)
    return lambda p: p.transform(p.size, PIL.Image.Transform.AFFINE, a, how, fillcolor=grey)


def _rotated(p: PIL.Image.Image, v: float) -> PIL.Image.Image:
    turned = p.convert("RGBA").rotate(v)
    return PIL.Image.composite(turned, PIL.Image.new("RGBA", p.size, (128,) * 4), turned).convert("RGB")


def _solarize_add(p: PIL.Image.Image, v: float) -> PIL.Image.Image:
    return ImageOps.solarize(PIL.Image.fromarray(np.clip(np.asarray(p).astype(int) + v, 0, 255).astype(np.uint8)), 128)


CUBIC = PIL.Image.Resampling.BICUBIC
OPERATIONS = {
    "invert": (lambda v: ImageOps.invert, (0,)),
    "posterize": (lambda v: lambda p: ImageOps.posterize(p, int(v)), (1, 4, 5, 8)),
    "solarize": (lambda v: lambda p: ImageOps.solarize(p, v), (0, 119.4667, 142.2, 256)),
    "solarize-add": (lambda v: lambda p: _solarize_add(p, v), (51.3333, 0)),
    "brightness": (lambda v: lambda p: ImageEnhance.Brightness(p).enhance(v), (0.1, 0.94, 1.7)),
    "contrast": (lambda v: lambda p: ImageEnhance.Contrast(p).enhance(v), (0.1, 0.94, 1.7)),
    "color": (lambda v: lambda p: ImageEnhance.Color(p).enhance(v), (0.1, 0.94, 1.9)),
    "sharpness": (lambda v: lambda p: ImageEnhance.Sharpness(p).enhance(v), (0.1, 0.94, 1.9)),
    "autocontrast": (lambda v: ImageOps.autocontrast, (0,)),
    "equalize": (lambda v: ImageOps.equalize, (0,)),
    "shear-x": (lambda v: _affine((1, v, 0, 0, 1, 0)), (0.14, -0.3)),
    "shear-y": (lambda v: _affine((1, 0, 0, v, 1, 0)), (0.14, -0.3)),
    "translate-x": (lambda v: _affine((1, 0, v, 0, 1, 0)), (14.5, -12.9, 46.7)),
    "translate-y": (lambda v: _affine((1, 0, 0, 0, 1, v)), (14.5, -12.9, 3.0)),
    "rotate": (lambda v: lambda p: _rotated(p, v), (0, 6.6667, -14, 30)),
    "cubic-shear-x": (lambda v: _affine((1, v, 0, 0, 1, 0), CUBIC), (0.2333, -0.3)),
    "cubic-shear-y": (lambda v: _affine((1, 0, 0, v, 1, 0), CUBIC), (0.2667, -0.2333)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_pillows(name: str) -> None:
    make, values = OPERATIONS[name]
    held = pictures()
    for value in values:
        v = float(np.float32(value))
        expected = np.stack([np.asarray(make(v)(PIL.Image.fromarray(p))) for p in held])
        op, size = torch.full((len(held),), OP[name]), torch.full((len(held),), v)
        found = apply(torch.from_numpy(held), op, size, 128).numpy()
        np.testing.assert_array_equal(found, expected, err_msg=f"{name} {v}")


def test_cutout_equals_pillows_rectangle() -> None:
    from PIL import ImageDraw

    held = pictures()[:4]
    v, corner = 18.6667, np.array([[3.2, 30.1], [16.4, 9.9], [31.9, 31.9], [1.0, 20.0]])
    expected = []
    for p, (x, y) in zip(held, corner, strict=True):
        picture = PIL.Image.fromarray(p)
        x0, y0 = int(max(0, x - v / 2)), int(max(0, y - v / 2))
        ImageDraw.Draw(picture).rectangle((x0, y0, min(32, x0 + v), min(32, y0 + v)), (125, 123, 114))
        expected.append(np.asarray(picture))
    op = torch.full((4,), OP["cutout"])
    found = apply(torch.from_numpy(held), op, torch.full((4,), v), 0, torch.from_numpy(corner).float())
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def test_a_sample_is_augmented_alike_in_any_batch() -> None:
    x, index = torch.from_numpy(pictures()), torch.arange(18)
    assert len(AutoAugment(PerSample(18, 0), 32).op) == 25
    cases = ("autoaugment", True, False), ("randaugment", True, False), ("autoaugment", False, True)
    for policy, first, is_inception in cases:
        whole = Augment(PerSample(18, 5), 32, 32, policy, first, 4, is_inception)
        again = Augment(PerSample(18, 5), 32, 32, policy, first, 4, is_inception)
        all_at_once = whole(x, index, 2)
        assert all_at_once.dtype == torch.uint8
        assert not torch.equal(all_at_once, whole(x, index, 3))
        part = torch.tensor([11, 2, 5])
        assert torch.equal(again(x[part], part, 2), all_at_once[part])


def test_randaugment_at_14_turns_translated_pictures_black() -> None:
    x = torch.full((4000, 32, 32, 3), 200, dtype=torch.uint8)
    out = RandAugment(PerSample(4000, 0), 2, 14)(x, torch.arange(4000), 0)
    black = float((out.flatten(1).float().mean(1) < 1).float().mean())
    assert 0.15 < black < 0.3  # 1 - (14 / 16)^2 are translated; some of them are inverted or brightened again


def test_inception_crop_and_resize() -> None:
    corner, size = boxes(32, torch.rand(500, 4), 0.05)
    assert ((corner >= 0) & (corner + size <= 32)).all()
    x = torch.from_numpy(pictures())
    whole = torch.full((18, 2), 32.0)
    assert torch.equal(resized(x, torch.zeros(18, 2), whole, 32), x)
    expected = F.interpolate(x.permute(0, 3, 1, 2).float(), size=(48, 48), mode="bilinear").round()
    found = resized(x, torch.zeros(18, 2), whole, 48).permute(0, 3, 1, 2).float()
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_a_function_of_seed_and_step(mixup: float, cutmix: float) -> None:
    partner, share, portion = mixing(16, 32, 1, 7, mixup, cutmix)
    again = mixing(16, 32, 1, 7, mixup, cutmix)
    assert torch.equal(partner, again[0])
    assert torch.equal(share, again[1])
    assert sorted(partner.tolist()) == list(range(16))
    assert portion == pytest.approx(float(share.mean()))
    if not mixup:
        assert set(share.unique().tolist()) <= {0.0, 1.0}


# ---- ImageNet's path, on a few generated pictures


def imagenet(folder: Path, n: int) -> None:
    datasets = pytest.importorskip("datasets")
    home = folder / "hub" / "ILSVRC" / "imagenet-1k" / "data"
    home.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=1000)})
    for split in ("train", "validation"):
        rng, rows = np.random.default_rng(0), []
        for i in range(n):
            buffer = io.BytesIO()
            PIL.Image.fromarray(rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)).save(buffer, "JPEG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        data = datasets.Dataset.from_dict({"image": rows, "label": [i % 3 for i in range(n)]}, features=features)
        data.to_parquet(home / f"{split}-00000-of-00001.parquet")


def test_imagenet_preset_trains_and_fine_tunes_on_generated_pictures(tmp_path: Path) -> None:
    imagenet(tmp_path, 8)
    tiny = (
        "--train-images 8 --test-images 8 --batch-size 4 --train-steps 3 --width 24 --depth 2 --heads 2 --mlp 48 "
        f"--warmup-steps 1 --device cpu --data-dir {tmp_path}"
    ).split()
    for command in (
        ["--preset", "table3-i1k-b16", "--resolution", "64", "--output-dir", str(tmp_path / "pre")],
        ["--preset", "table5-i1k-b16-imagenet", "--resolution", "96", "--output-dir", str(tmp_path / "fine"),
         "--weights", str(tmp_path / "pre/checkpoints/step-000000003/state.pt")],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            launch("vit", [*command, *tiny])
        assert stop.value.code == 0
    (record,) = (read(path) for path in (tmp_path / "fine").glob("records/*.json"))
    assert record.status == "finished"
    assert record.metrics["test_accuracy"] is not None


def test_two_processes_share_a_streamed_evaluation(tmp_path: Path, script) -> None:
    imagenet(tmp_path, 8)
    tiny = (
        "--preset table3-i1k-b16 --resolution 64 --train-images 8 --test-images 8 --batch-size 4 --train-steps 1 "
        f"--width 24 --depth 1 --heads 2 --mlp 48 --device cpu --data-dir {tmp_path} --output-dir {tmp_path / 'run'}"
    ).split()
    done = script("papers.vit.train", *tiny, processes=2)
    assert done.returncode == 0, done.stderr
    (record,) = (read(path) for path in (tmp_path / "run").glob("records/*.json"))
    assert record.processes == 2
    assert record.metrics["test_accuracy"] in [100 * right / 8 for right in range(9)]


def test_a_run_leaves_its_pictures(tmp_path: Path) -> None:
    stem = "--stem small --stages 1 1 --stem-channels 8 --patch 4 --train-steps 2 --device cpu"
    with pytest.raises(SystemExit):
        launch("vit", ["--preset", "smoke", *stem.split(), "--output-dir", str(tmp_path / "run")])
    for name in ("positions", "attention-distance", "rollout"):
        assert PIL.Image.open(tmp_path / "run" / f"{name}.png").width > 200


def test_a_first_vit_on_mnist(tmp_path: Path) -> None:
    cfg = PRESETS["snehashishd2-mnist"]
    assert cfg.steps == 5 * 938  # 60,000 in batches of 64, the last one of 32
    assert {schedule(cfg)(step) for step in (0, 1, 2_000, cfg.steps)} == {1.0}
    tiny = ["--preset", "snehashishd2-mnist", "--dataset", "synthetic/28x28x1", "--train-images", "80"]
    record = trained(tmp_path / "run", *tiny, "--epochs", "2", "--test-images", "40")
    losses = record.curves["train_loss"][1]
    assert len(losses) == 4
    per_batch = record.curves["train_accuracy"][1]  # of 64 and of 16 pictures
    for epoch in (1, 2):
        first, last = per_batch[2 * epoch - 2 : 2 * epoch]
        expected = (64 * first + 16 * last) / 80  # type: ignore[operator]
        assert record.metrics[f"train_accuracy/epoch{epoch}"] == pytest.approx(expected)
    assert "train_accuracy/epoch3" not in record.metrics
    for other in (["--resolution", "56"], ["--policy", "randaugment"]):
        with pytest.raises(SystemExit) as stop:
            launch("vit", [*tiny, *other, "--output-dir", str(tmp_path / "other")])
        assert stop.value.code != 0
