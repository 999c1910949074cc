"""Identity of the masked autoencoder: counts, the reference library, slower ways, promises, the path of ImageNet."""

import io
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from common.cli import launch
from common.cost import learned
from common.data.augment import blend, boxes
from common.errors import UserError
from common.records import read
from papers.mae import data
from papers.mae.audit import audit, build, multiply_adds
from papers.mae.config import PRESETS
from papers.mae.model import (
    MAE,
    Block,
    Classifier,
    Probe,
    initialise,
    noise,
    patchify,
    sines,
    taken,
    unpatchify,
)
from papers.mae.timing import KINDS, peer
from papers.mae.train import LARS, layer_groups, schedule

SMALL = replace(
    PRESETS["laptop"], width=24, depth=3, heads=2, decoder_width=16, decoder_depth=2, patch=8, mask="random"
)


def small(seed: int = 0, **changes: object) -> MAE:
    model = build(replace(SMALL, **changes))  # type: ignore[arg-type]
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def disturbed(model: torch.nn.Module) -> None:
    """No weight or bias at its start, so that every one of them matters."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


# ---- counts


def test_counts_of_the_papers_networks() -> None:
    counts = audit(None)[0]
    assert [counts[f"parameters/vit-{s}"] for s in "blh"] == [86_567_656, 304_326_632, 632_045_800]
    assert [counts[f"parameters/mae-{s}"] for s in "blh"] == [111_655_680, 329_239_296, 656_613_964]
    assert counts["visible_patches/vit-l"] == 49
    assert counts["visible_patches/vit-h"] == 64
    assert counts["flops_ratio/table1"] == pytest.approx(3.2285, abs=1e-4)


def test_icaruswizards_network_by_hand() -> None:
    d, p = 192, 12
    block = d * 3 * d + d * d + d + 8 * d * d + 5 * d + 4 * d
    encoder = p * d + d + d + 256 * d + 12 * block + 2 * d
    decoder = d + 257 * d + 4 * block + d * p + p
    assert learned(build(PRESETS["icaruswizard"])) == encoder + decoder


@pytest.mark.parametrize("preset", ["table1", "laptop"])
def test_multiply_adds_are_those_of_the_reference(preset: str) -> None:
    cfg = PRESETS[preset]
    n = (cfg.resolution // cfg.patch) ** 2
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        peer(cfg)(torch.empty(1, 3, cfg.resolution, cfg.resolution), noise=torch.empty(1, n))
    assert counter.get_total_flops() // 2 == multiply_adds(cfg)


# ---- against the reference, and against slower ways


def mapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours from the names of transformers' ViTMAEForPreTraining."""
    found = {}
    for name, value in state.items():
        for old, new in (
            ("vit.embeddings.cls_token", "encoder.class_token"),
            ("vit.embeddings.position_embeddings", "encoder.positions"),
            ("vit.embeddings.patch_embeddings.projection", "encoder.embedding"), ("vit.layers.", "encoder.blocks."),
            ("vit.layernorm.", "encoder.norm."), ("decoder.mask_token", "mask_token"),
            ("decoder.decoder_pos_embed", "decoder_positions"), ("decoder.decoder_embed", "decoder_embedding"),
            ("decoder.decoder_layers.", "decoder_blocks."), ("decoder.decoder_norm", "decoder_norm"),
            ("decoder.decoder_pred", "prediction"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
            ("attention.o_proj", "out"), ("mlp.fc", "mlp"),
        ):  # fmt: skip
            name = name.replace(old, new)
        found[name] = value.permute(0, 2, 3, 1).flatten(1) if name == "encoder.embedding.weight" else value
    for name in [name for name in found if "attention.q_proj" in name]:
        parts = [found.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[name.replace("attention.q_proj", "qkv")] = torch.cat(parts)
    return found


@pytest.mark.parametrize("target", ["pixel", "normalised"])
def test_equals_transformers_with_mapped_weights(target: str) -> None:
    cfg = replace(SMALL, target=target, decoder_width=64)  # type: ignore[arg-type]
    theirs, ours = peer(cfg).double(), small(target=target, decoder_width=64).double()
    disturbed(theirs)
    ours.load_state_dict(mapped(theirs.state_dict()))
    x, u = torch.randn(5, 3, 32, 32).double(), torch.rand(5, 16).double()
    theirs_out = theirs(x, noise=u)
    loss = ours(x, u)
    torch.testing.assert_close(loss, theirs_out.loss, rtol=1e-7, atol=0)
    order = u.argsort(1)
    wanted = taken(theirs_out.logits, order[:, ours.k :])
    torch.testing.assert_close(ours.decoded(patchify(x, 8), order), wanted, rtol=1e-7, atol=1e-8)
    loss.backward()
    theirs_out.loss.backward()
    gradients = mapped({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, p in ours.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-6, atol=1e-9)


def test_positions_are_transformers() -> None:
    """Its networks begin with zeros in their place (5.23), so the table is asked for, and turned as it says."""
    theirs = build_2d_sinusoidal_position_embedding(5, 5, 24, cls_token=True)
    wanted = torch.cat([theirs[:, 12:], theirs[:, :12]], 1)
    torch.testing.assert_close(sines(5, 24)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mask_tokens", ["decoder", "encoder"])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("dialect", ["mae", "icaruswizard"])
def test_equals_the_unshuffled_way(mask_tokens: str, loss_on: str, dialect: str) -> None:
    """Every token in its place, every patch predicted, a mask over the errors."""
    width = 24 if dialect == "icaruswizard" else 16
    model = small(mask_tokens=mask_tokens, loss_on=loss_on, dialect=dialect, decoder_width=width).double()
    disturbed(model)
    encoder, x, u = model.encoder, torch.randn(3, 3, 32, 32).double(), torch.rand(3, 16).double()
    patches, rank = patchify(x, 8), u.argsort(1).argsort(1)
    masked = (rank >= model.k)[..., None]
    z = encoder.embedding(patches) + encoder.positions[:, -16:]
    if mask_tokens == "encoder":
        whole = encoder(torch.where(masked, model.mask_token + encoder.positions[:, -16:], z))
        whole = model.decoder_embedding(whole)
    else:
        seen = torch.stack([row[~hidden[:, 0]] for row, hidden in zip(z, masked, strict=True)])  # in order of place
        first, *rest = model.decoder_embedding(encoder(seen)).split([1, model.k], 1)
        tokens = model.mask_token.expand(3, 16, -1).clone()
        tokens[~masked[..., 0]] = rest[0].flatten(0, 1)
        whole = torch.cat([first, tokens], 1)
    whole = whole + model.decoder_positions
    for block in model.decoder_blocks:
        whole = block(whole)
    predicted = model.prediction(model.decoder_norm(whole))[:, 1:]
    errors = (predicted - patches).square().mean(-1)
    if loss_on == "masked":
        errors = (errors * masked[..., 0]).sum() / masked.sum()
    torch.testing.assert_close(model(x, u), errors.mean(), rtol=1e-7, atol=0)
    shown, where = model.reconstructed(x, u)
    torch.testing.assert_close(shown, unpatchify(torch.where(masked, predicted, patches), 8))
    assert torch.equal(where[:, 0], unpatchify(masked.expand_as(patches).double(), 8)[:, 0])


def test_a_block_by_hand_and_only_what_is_read() -> None:
    model = small()
    block, z = cast(Block, model.encoder.blocks[0]), torch.randn(2, 5, 24)
    q, k, v = block.qkv(block.norm1(z)).chunk(3, -1)
    heads = [
        (q[..., s] @ k[..., s].mT / 12**0.5).softmax(-1) @ v[..., s] for s in (slice(0, 12), slice(12, 24))
    ]  # fmt: skip
    paths = torch.tensor([[0.0, 2.0], [1.5, 0.0]])
    wanted = z + paths[:, 0, None, None] * block.out(torch.cat(heads, -1))
    wanted = wanted + paths[:, 1, None, None] * block.mlp2(F.gelu(block.mlp1(block.norm2(wanted))))
    torch.testing.assert_close(block(z, paths), wanted)
    torch.testing.assert_close(block(z, paths, slice(2, None)), wanted[:, 2:])
    x = torch.randn(4, 3, 32, 32)
    for pool, which in (("token", slice(0, 1)), ("mean", slice(1, None))):
        encoder = small(pool=pool).encoder
        whole = encoder(encoder.tokens(patchify(x, 8), None))
        torch.testing.assert_close(encoder.features(x), whole[:, which].mean(1))


def test_patches_are_rows_columns_channels() -> None:
    x = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    patches = patchify(x, 4)
    assert torch.equal(patches, torch.einsum("nchpwq->nhwpqc", x.view(2, 3, 2, 4, 2, 4)).reshape(2, 4, 48))
    assert torch.equal(unpatchify(patches, 4), x)


def test_lars_and_probe() -> None:
    probe = Probe(6, 3)
    torch.nn.init.normal_(probe.head.weight, generator=torch.Generator().manual_seed(0))
    assert [name for name, p in probe.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    features, y = 5 + 3 * torch.randn(40, 6), torch.arange(40) % 3
    torch.testing.assert_close(
        probe(features), probe.head(F.batch_norm(features, None, None, training=True, eps=1e-6)), rtol=1e-4, atol=1e-5
    )
    optimizer, weight, bias = LARS(probe.head.parameters(), lr=0.5), probe.head.weight, probe.head.bias
    before, held = [p.detach().clone() for p in (weight, bias)], [torch.zeros(3, 6), torch.zeros(3)]
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(probe(features), y).backward()
        optimizer.step()
        for i, p in enumerate((weight, bias)):
            gradient = cast(Tensor, p.grad)
            scale = 1e-3 * before[i].norm() / gradient.norm() if i == 0 else 1.0
            held[i] = 0.9 * held[i] + scale * gradient
            before[i] = before[i] - 0.5 * held[i]
            torch.testing.assert_close(p.detach(), before[i])


def test_learning_rates_of_layers_and_steps() -> None:
    cfg = replace(SMALL, tune_base_lr=1.0, tune_batch_size=256, tune_weight_decay=0.1)
    model = Classifier(small().encoder, 10)
    groups = layer_groups(cfg, model, 0.5)
    assert sum(p.numel() for g in groups for p in g["params"]) == learned(model)

    def of(p: Tensor) -> tuple[float, float]:
        group = next(g for g in groups if any(p is q for q in g["params"]))
        return group["lr"], group["weight_decay"]

    assert of(model.head.weight) == (1.0, 0.1)
    assert of(model.encoder.norm.weight) == (1.0, 0.0)
    assert of(cast(Block, model.encoder.blocks[2]).mlp1.weight) == (0.5, 0.1)
    assert of(model.encoder.embedding.weight) == (0.0625, 0.1)
    assert of(cast(Tensor, model.encoder.class_token)) == of(model.encoder.positions) == (0.0625, 0.0)
    at = schedule(PRESETS["table1"], 800, 40, 312)
    assert [at(0), at(20 * 312), at(40 * 312), at(420 * 312), at(800 * 312)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    at = schedule(PRESETS["icaruswizard"], 100, 5, 390)
    assert [at(0), at(389), at(390), at(50 * 390)] == pytest.approx([0.2, 0.2, 0.4, 0.5])


# ---- what the paper promises


@pytest.mark.parametrize(("kind", "ratio"), [("random", 0.75), ("block", 0.75), ("block", 0.5), ("grid", 0.75)])
def test_masks(kind: str, ratio: float) -> None:
    g, b = 14, 400
    k = int(g * g * (1 - ratio))
    u = noise(kind, b, g, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert torch.equal(u, noise(kind, b, g, torch.Generator().manual_seed(0)))  # type: ignore[arg-type]
    visible = torch.zeros(b, g * g).scatter(1, u.argsort(1)[:, :k], 1.0).view(b, g, g)
    assert (visible.sum((1, 2)) == k).all()
    below, beside = visible[:, 1:] == visible[:, :-1], visible[..., 1:] == visible[..., :-1]
    alike = float(torch.cat([below.flatten(), beside.flatten()]).float().mean())
    if kind == "random":
        assert alike == pytest.approx(0.75**2 + 0.25**2, abs=0.01)
        assert float(visible.mean(0).std()) < 0.03  # no patch is preferred
    elif kind == "block":
        assert alike > 0.85
        assert len({tuple(v.flatten().tolist()) for v in visible}) == b
    else:
        assert (visible.view(b, 7, 2, 7, 2).sum((2, 4)) == 1).all()  # one of every four


def test_the_encoder_never_sees_masked_patches() -> None:
    model = small()
    disturbed(model)
    x, u = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    _, masked = model.reconstructed(x, u)
    other = torch.where(masked > 0, torch.randn_like(x), x)
    order = u.argsort(1)
    decoded = [model.decoded(patchify(image, 8), order) for image in (x, other)]
    assert torch.equal(*decoded)
    assert model.losses(x, u).shape == (2,)
    seen = torch.where(masked > 0, x, torch.randn_like(x))
    assert not torch.allclose(decoded[0], model.decoded(patchify(seen, 8), order))
    model.decoder_positions.data.zero_()  # without them all masked patches of a picture are predicted alike
    blind = model.decoded(patchify(x, 8), order)
    torch.testing.assert_close(blind, blind[:, :1].expand_as(blind), rtol=1e-4, atol=1e-5)


def test_a_normalised_target_does_not_mind_contrast() -> None:
    model, patches = small(target="normalised"), 3 * torch.randn(2, 16, 192)
    target = model.target(patches)
    torch.testing.assert_close(target, model.target(2 * patches + 5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(2, 16), atol=1e-4, rtol=0)
    assert small().target(patches) is patches


@pytest.mark.parametrize(("tuned", "learn"), [(0, 0), (0.5, 1), (1, 2), (2.5, 5), (3, 6), (None, 7)])
def test_partial_fine_tuning_moves_only_the_last_halves_of_blocks(tuned: float | None, learn: int) -> None:
    model = Classifier(small().encoder, 10, tuned)
    torch.nn.init.normal_(model.head.weight)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    blocks = [cast(Block, b) for b in model.encoder.blocks]
    halves = [m for b in blocks for m in ((b.norm1, b.qkv, b.out), (b.norm2, b.mlp1, b.mlp2))]
    moved = [all(p.grad is not None for m in half for p in m.parameters()) for half in halves]
    assert moved == [i >= 6 - learn for i in range(6)]
    assert (model.encoder.embedding.weight.grad is not None) == (tuned is None)
    assert (model.encoder.positions.grad is not None) == (tuned is None)
    assert model.head.weight.grad is not None
    assert model.encoder.norm.weight.grad is not None


def test_pre_training_learns_to_fill_in() -> None:
    """Slopes of a random colour: masked patches follow from visible ones, their mean does not."""
    draw, model = torch.Generator().manual_seed(0), small(width=48, heads=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, betas=(0.9, 0.95))
    slope, losses = torch.linspace(-1.7, 1.7, 32)[:, None], []
    for _ in range(110):
        x = (torch.randn(64, 3, 1, 1, generator=draw) * slope).expand(-1, -1, -1, 32)
        loss = model(x, noise("random", 64, 4, draw))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8
    assert losses[-1] < 0.25


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 5}, "do not divide into patches"),
        ({"heads": 5}, "does not divide among 5 heads"),
        ({"mask_ratio": 0.99}, "leaves 0 of 16 patches"),
        ({"width": 22}, "multiple of 4"),
        ({"decoder_depth": 0}, "needs a block"),
        ({"dialect": "icaruswizard"}, "as wide as its encoder"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--evaluations probe", "unknown evaluation 'probe'"),
        ("--evaluations partial-x", "should read partial-<blocks>"),
        ("--evaluations partial-0.3", "cannot be tuned"),
        ("--evaluations linear linear", "one is there twice"),
        ("--tune-augment strong", "needs a streamed set"),
        ("--resolution 64", "has pictures of 32 pixels"),
    ],
)
def test_mistakes_get_one_line(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("mae", ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run"), *words.split()])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


# ---- pictures


def test_boxes_are_cut_and_scaled() -> None:
    corner, size = boxes(32, torch.rand(500, 4), 0.2)
    assert ((corner >= 0) & (corner + size <= 32)).all()
    area = (size.prod(1) / 32**2).numpy()
    assert area.min() > 0.15
    assert area.mean() == pytest.approx(0.6, abs=0.05)
    x = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    whole = torch.full((3, 2), 32.0)
    assert torch.equal(data.resized(x, torch.zeros(3, 2), whole), x)
    corner, size = torch.tensor([[0.0, 16.0]] * 3), torch.tensor([[32.0, 16.0]] * 3)
    found = data.resized(x, corner, size)[:, :, 4:-4].float()  # away from the seam, where other pixels show
    wanted = F.interpolate(x[:, :, 16:].permute(0, 3, 1, 2).float(), size=(32, 32), mode="bicubic")
    assert (found.permute(0, 3, 1, 2) - wanted.round().clamp(0, 255)[..., 4:-4]).abs().max() <= 1
    crop = data.random_boxes(40, 5, torch.device("cpu"))
    x, index = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8), torch.randperm(40)
    part = torch.tensor([11, 2, 5])
    assert torch.equal(crop(x[index], index, 2)[part], crop(x[index][part], index[part], 2))
    assert not torch.equal(crop(x, index, 2), crop(x, index, 3))


def test_rand_augment_is_timms() -> None:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    for name in data.OPERATIONS:
        still = np.asarray(data.operation(name, image, 0.0, 1))
        if name not in ("autocontrast", "equalize", "invert", "posterize"):
            assert np.array_equal(still, np.asarray(image)), name
        assert not np.array_equal(np.asarray(data.operation(name, image, 0.9, 1)), np.asarray(image)) or (
            name in ("autocontrast",)  # noise spans all values already
        ), name
    moved = np.asarray(data.operation("translate-x", image, 0.9, -1))
    shift = round(0.45 * 0.9 * 48)
    assert (moved[:, 4 : shift - 4] == data.GREY).all()
    assert data.GREY == (124, 116, 104)
    posterized = np.asarray(data.operation("posterize", image, 0.9, 1))
    assert set(np.unique(posterized)) == {0, 128}  # 4 - int(3.6) bits
    once, again = (np.asarray(data.rand_augment(image, np.random.default_rng(3))) for _ in range(2))
    assert np.array_equal(once, again)
    for seed in range(20):
        share, portion = blend(32, np.random.default_rng(seed), 0.8, 1.0)
        assert portion == pytest.approx(float(share.mean()))
        assert 0 <= float(share.min()) <= float(share.max()) <= 1


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
        made = datasets.Dataset.from_dict({"image": rows, "label": [i % 3 for i in range(n)]}, features=features)
        made.to_parquet(home / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize(("preset", "crop"), [("fig9", "random"), ("table3-b-scratch", "fixed"), ("table1", "none")])
def test_imagenet_presets_train_on_generated_pictures(
    preset: str, crop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagenet(tmp_path, 9)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)  # else 5 s at every epoch's end
    tiny = (
        f"--train-images 9 --test-images 9 --batch-size 4 --epochs {min(1, PRESETS[preset].epochs)} --crop {crop} "
        "--linear-epochs 1 --linear-batch-size 4 --tune-epochs 1 --tune-batch-size 4 --resolution 32 --width 24 "
        f"--depth 4 --heads 2 --decoder-width 16 --decoder-depth 1 --device cpu --data-dir {tmp_path}"
    ).split()
    with pytest.raises(SystemExit) as stop:
        launch("mae", ["--preset", preset, *tiny, "--output-dir", str(tmp_path / "run")])
    assert stop.value.code == 0
    (record,) = (read(path) for path in (tmp_path / "run").glob("records/*.json"))
    assert record.status == "finished"
    for name in PRESETS[preset].evaluations:
        assert record.metrics[f"test_accuracy/{name}"] in [pytest.approx(100 * right / 9) for right in range(10)]
    assert (tmp_path / "run" / "reconstructions.png").exists() == (preset != "table3-b-scratch")


def test_a_run_takes_times_and_leaves_pictures(tmp_path: Path) -> None:
    tiny = "--preset timing --width 24 --depth 2 --heads 2 --decoder-width 32 --decoder-depth 2 --resolution 32"
    with pytest.raises(SystemExit) as stop:
        launch("mae", [*tiny.split(), "--epochs", "2", "--device", "cpu", "--output-dir", str(tmp_path / "timing")])
    assert stop.value.code == 0
    (record,) = (read(path) for path in (tmp_path / "timing").glob("records/*.json"))
    assert all((record.metrics[f"ms_per_step/{kind}"] or 0) > 0 for kind in KINDS)
    with pytest.raises(SystemExit):
        launch("mae", ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run")])
    assert PIL.Image.open(tmp_path / "run" / "reconstructions.png").size == (8 * 34 * 2, 3 * 34 * 2)
