"""VordMekh_project's protocol on digits: torch's own layers, its one cycle, dropout, votes, and a run that resumes."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import launch
from common.cost import learned
from common.optim import one_cycle
from common.random import generator
from common.records import Record, read
from common.run import Run
from papers.mae.audit import build
from papers.mae.config import PRESETS
from papers.mae.model import MAE, Block, Drop, Dropout, initialise, noise, patchify, votes
from papers.mae.train import labelled_updates, probing

CFG = PRESETS["vordmekh-50"]
SHRUNK = (
    "--dataset synthetic/28x28x1 --train-images 512 --test-images 128 --width 16 --depth 2 --decoder-width 8 --heads 2 "
    "--batch-size 70 --linear-batch-size 100 --tune-batch-size 100 --linear-epochs 1 --tune-epochs 1 --device cpu"
)


def model(seed: int = 0) -> MAE:
    made = build(CFG)
    initialise(made, generator(seed))
    return made


def run(folder: Path, preset: str, *more: str) -> Record:
    with pytest.raises(SystemExit) as stop:
        launch("mae", ["--preset", preset, *SHRUNK.split(), *more, "--output-dir", str(folder)])
    assert stop.value.code == 0
    (record,) = (read(path) for path in folder.glob("records/*.json"))
    return record


class Times(nn.Module):
    """Stands in for dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.8 * x


def stack(blocks: nn.ModuleList, d: int, heads: int, replaced: bool) -> nn.TransformerEncoder:
    """torch's, with the weights of ours; `replaced`: 0.8 times whatever its dropout gets."""
    layer = nn.TransformerEncoderLayer(d, heads, 4 * d, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, len(blocks), enable_nested_tensor=False).double()
    names = {"qkv.": "self_attn.in_proj_", "out.": "self_attn.out_proj.", "mlp1": "linear1", "mlp2": "linear2"}
    for block, layer in zip(blocks, theirs.layers, strict=True):
        state = block.state_dict()
        for old, new in names.items():
            state = {name.replace(old, new): value for name, value in state.items()}
        layer.load_state_dict(state)
        if replaced:
            layer.dropout, layer.dropout1, layer.dropout2 = Times(), Times(), Times()
            with torch.no_grad():
                layer.self_attn.out_proj.weight.mul_(0.8)  # as if attention's weights were smaller
    return theirs


@pytest.mark.parametrize("dropping", [False, True])
def test_the_network_is_torchs(dropping: bool) -> None:
    """All tokens in their place, all patches predicted, a mask over the errors; outputs and gradients."""
    ours = model().double()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(p.numel())))
    drop: Drop = Times() if dropping else None
    encoder, decoder = stack(ours.encoder.blocks, 128, 4, dropping), stack(ours.decoder_blocks, 64, 4, dropping)
    x, u = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.rand(3, 16)

    order = u.argsort(1)
    patches = torch.stack(
        [x[:, 0, 7 * i : 7 * i + 7, 7 * j : 7 * j + 7].flatten(1) for i in range(4) for j in range(4)]
    )
    patches = patches.transpose(0, 1)
    assert torch.equal(patches, patchify(x, 7))
    tokens = ours.encoder.embedding(patches) + ours.encoder.positions
    seen = torch.stack([row[kept] for row, kept in zip(tokens, order[:, :4], strict=True)])
    visible = ours.decoder_embedding(ours.encoder.norm(encoder(seen)))
    empty = ours.mask_token[0].expand(16, -1)
    grid = torch.stack(
        [empty.index_put((kept,), row) for row, kept in zip(visible, order[:, :4], strict=True)]
    )  # fmt: skip
    predicted = ours.prediction(ours.decoder_norm(decoder(grid + ours.decoder_positions)))
    masked = torch.ones(3, 16, dtype=torch.float64).scatter(1, order[:, :4], 0.0)
    theirs = ((predicted - patches).square().mean(2) * masked).sum() / masked.sum()
    loss = ours(x, u, drop)
    torch.testing.assert_close(loss, theirs, rtol=1e-9, atol=0)

    loss.backward()
    found = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, _ in ours.named_parameters()}
    ours.zero_grad()
    theirs.backward()  # through torch's blocks into their own weights, into ours elsewhere
    for name, p in ours.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-6, atol=1e-10)
    scale = 0.8 if dropping else 1.0
    for mine, blocks in (("encoder.blocks", encoder), ("decoder_blocks", decoder)):
        for i, layer in enumerate(blocks.layers):
            torch.testing.assert_close(found[f"{mine}.{i}.qkv.weight"], layer.self_attn.in_proj_weight.grad)
            torch.testing.assert_close(found[f"{mine}.{i}.mlp2.weight"], layer.linear2.weight.grad)
            torch.testing.assert_close(
                found[f"{mine}.{i}.out.weight"], scale * layer.self_attn.out_proj.weight.grad, rtol=1e-6, atol=1e-10
            )
    whole = ours.encoder.norm(encoder(tokens)).mean(1)
    torch.testing.assert_close(ours.encoder.features(x, drop=drop), whole, rtol=1e-9, atol=1e-12)


def test_the_start_is_torchs() -> None:
    """Copies of one layer; Xavier uniform for q, k and v together; the sizes by hand."""
    made = model()
    for blocks, d in ((made.encoder.blocks, 128), (made.decoder_blocks, 64)):
        first = blocks[0]
        assert isinstance(first, Block)
        assert all(
            torch.equal(a, b) for block in blocks for a, b in zip(block.parameters(), first.parameters(), strict=True)
        )
        assert first.qkv.weight.abs().max().item() == pytest.approx((6 / (4 * d)) ** 0.5, rel=1e-3)
        assert first.out.weight.abs().max().item() == pytest.approx(d**-0.5, rel=1e-2)
        assert first.qkv.bias.abs().max() == first.out.bias.abs().max() == 0
        assert first.mlp1.bias.abs().max() > 0
    assert made.encoder.positions.std().item() == pytest.approx(0.02, rel=0.05)

    def layers(n: int, d: int) -> int:
        return n * (12 * d * d + 13 * d) + 2 * d

    encoder, decoder = 50 * 128 + 16 * 128 + layers(4, 128), 129 * 64 + 17 * 64 + layers(2, 64) + 65 * 49
    assert learned(made) == encoder + decoder


def test_four_of_sixteen_patches_are_seen() -> None:
    made, x = model(), torch.rand(50, 1, 28, 28)
    u = noise("random", 50, 4, generator("masks"))
    _, masked = made.reconstructed(x, u)
    assert (patchify(masked, 7).mean(2).sum(1) == 12).all()
    assert len(torch.unique(masked.flatten(1), dim=0)) > 45


def test_dropout_is_a_function_of_its_key_and_of_the_whole_batch() -> None:
    x = torch.ones(64, 5, 101)
    drop, again = Dropout(0.1, "a", 0), Dropout(0.1, "a", 0)
    first = drop(x)
    assert torch.equal(first, again(x))
    assert not torch.equal(first, drop(x))
    assert not torch.equal(first, Dropout(0.1, "a", 1)(x))
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.9], rel=1e-5)
    assert (first == 0).double().mean().item() == pytest.approx(0.1, abs=0.006)
    halves = [Dropout(0.1, "a", 0, part=(i, 2)) for i in (0, 1)]
    assert torch.equal(torch.cat([half(part) for half, part in zip(halves, x.chunk(2), strict=True)]), first)
    one, three = x[:1, :1, :3], Dropout(0.1, "b")  # no multiple of four
    assert three(one).shape == one.shape


@pytest.mark.parametrize(("steps", "warmup"), [(40, 12.0), (23, 0.3 * 23), (3 * 234, 0.3 * 3 * 234)])
def test_one_cycle_is_torchs(steps: int, warmup: float) -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([p], lr=1.5e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps)
    lr = one_cycle(warmup, steps, start=1 / 25, end=1 / 25e4)
    beta1 = one_cycle(warmup, steps, start=0.95, top=0.85, end=0.95)
    for step in range(steps):
        (group,) = optimizer.param_groups
        assert 1.5e-3 * lr(step) == pytest.approx(group["lr"], rel=1e-9)
        assert beta1(step) == pytest.approx(group["betas"][0], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_votes_of_neighbours() -> None:
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.5], [9.0, 9.0], [9.0, 8.0], [8.0, 9.0]])
    labels = torch.tensor([2, 1, 1, 0, 0, 2])
    queries = torch.tensor([[0.1, 0.1], [8.5, 8.5]])
    assert votes(queries, places, labels, 3, 3).tolist() == [[0, 2, 1], [2, 0, 1]]
    assert votes(queries, places, labels, 1, 3).argmax(1).tolist()[0] == 2
    assert votes(queries, places, labels, 6, 3).argmax(1).tolist() == [0, 0]  # a tie
    x, y, q = (torch.randn(*shape, generator=generator(shape[0])) for shape in ((300, 8), (300, 1), (20, 8)))
    x, q, y = F.normalize(x), F.normalize(q), (y[:, 0] > 0).long()
    cosine = F.one_hot(y[(q @ x.T).topk(5).indices], 2).sum(1)
    assert torch.equal(votes(q, x, y, 5, 2), cosine)


def test_presets_are_the_protocol() -> None:
    assert (CFG.resolution // CFG.patch) ** 2 == 16
    assert CFG.train_images // CFG.batch_size == 234
    assert labelled_updates(CFG, CFG.linear_batch_size) == labelled_updates(CFG, CFG.tune_batch_size) == 235
    assert (CFG.lr, CFG.linear_base_lr, CFG.tune_lr) == (1.5e-3, 1e-3, 1e-3)
    assert {CFG.weight_decay, CFG.linear_weight_decay, CFG.tune_weight_decay} == {0.05}
    for name, epochs in (("vordmekh-50-tuned", 50), ("vordmekh-300", 300), ("vordmekh-random", 0)):
        cfg = PRESETS[name]
        assert replace(cfg, epochs=50, warmup_epochs=15.0, evaluations=CFG.evaluations) == CFG
        assert cfg.epochs == epochs
        assert not epochs or cfg.warmup_epochs == pytest.approx(0.3 * epochs)


def test_a_probe_is_a_line_that_adamw_draws() -> None:
    y = torch.arange(100) % 10
    features = 3 * F.one_hot(y, 128).float() + 0.1 * torch.randn(100, 128, generator=generator("features"))
    source = SimpleNamespace(features=lambda name, encoder: lambda step: (features, y))
    phase = probing(CFG, SimpleNamespace(seeds=[0], device="cpu"), source, "linear", model().encoder)  # type: ignore[arg-type]
    assert phase.steps == 50 * 235
    assert phase.schedule(0) == phase.schedule(phase.steps - 1) == 1
    assert isinstance(phase.model, nn.Linear)
    theirs = copy.deepcopy(phase.model)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(200):
        for optimizer, loss in (
            (phase.optimizer, phase.loss(phase.model, step)),
            (adamw, F.cross_entropy(theirs(features), y)),
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(phase.model.weight, theirs.weight, rtol=1e-4, atol=1e-6)
    assert (phase.model(features).argmax(1) == y).all()


def test_a_short_run_measures_everything_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = ("knn", "linear", "finetune")
    short = ["--epochs", "2", "--warmup-epochs", "0.6", "--evaluations", *evaluations]
    whole = run(tmp_path / "whole", "vordmekh-50", *short)
    wanted = {f"test_accuracy/{name}" for name in evaluations} | {"train_loss", "test_loss"}
    assert whole.metrics.keys() == wanted
    assert set(whole.claims) == {f"mae/vordmekh/{n}" for n in ("knn-50", "probe-50", "recon-50")}
    steps, losses = whole.curves["pretraining_loss"]
    assert steps == list(range(14))
    assert whole.metrics["train_loss"] == pytest.approx(sum(losses[7:]) / 7)  # type: ignore[arg-type]
    assert (tmp_path / "whole" / "reconstructions.png").exists()

    kept = Run.steps

    def torn(self: Run, total: int, state: dict, every: int | None = None) -> Iterator[int]:
        yield from itertools.islice(kept(self, total, state, 1), 11)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "steps", torn)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        launch("mae", ["--preset", "vordmekh-50", *SHRUNK.split(), *short, "--output-dir", str(tmp_path / "torn")])
    monkeypatch.undo()
    with pytest.raises(SystemExit) as stop:
        launch("mae", ["--resume", str(tmp_path / "torn")])
    assert stop.value.code == 0
    (again,) = (read(path) for path in (tmp_path / "torn").glob("records/*.json"))
    assert again.metrics == whole.metrics
