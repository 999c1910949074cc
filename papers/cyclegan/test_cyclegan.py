"""Identity of CycleGAN: counts, patches, the objective against its definition, the pool, domains, metrics."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from common.cli import launch
from common.errors import UserError
from common.random import generator
from common.records import Record, read
from papers.cyclegan.audit import audit
from papers.cyclegan.config import ARMS, PRESETS
from papers.cyclegan.data import CITYSCAPES, Domains, UnpairedBatches, load, scaled, unscaled
from papers.cyclegan.evaluation import confusion, contact_sheet, diversity, evaluate, nearest_colour, scores
from papers.cyclegan.model import (
    Discriminator,
    Generator,
    Judgement,
    Networks,
    Pool,
    Translation,
    l1,
    linear_decay,
    lsgan,
    receptive_field,
)
from papers.cyclegan.train import check


def networks(seed: int = 0) -> tuple[Networks, Networks]:
    """Small ones in double precision: generators, discriminators."""
    pair = Networks(Generator(4, 1), Generator(4, 1)), Networks(Discriminator(4, 1), Discriminator(4, 1))
    for purpose, each in zip("gd", pair, strict=True):
        each.initialise(seed, purpose, 0.1)
        each.double()
    return pair


def pictures(b: int = 2, side: int = 16, seed: int = 0) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.rand(b, 3, side, side, generator=numbers, dtype=torch.float64) * 2 - 1


def run(folder: Path, *arguments: str) -> Record:
    with pytest.raises(SystemExit) as stop:
        launch("cyclegan", ["--device", "cpu", "--output-dir", str(folder), *arguments])
    assert stop.value.code == 0
    return read(next(folder.glob("records/*.json")))


# ---- Networks


def test_counts_of_the_paper_and_its_code() -> None:
    counts = audit(None)[0]
    assert counts["parameters/generator-6"] == 7_837_699
    assert counts["parameters/generator-9"] == 11_378_179
    assert counts["parameters/discriminator"] == 2_764_737
    assert [counts[f"residual_blocks/{side}"] for side in (128, 256)] == [6, 9]
    assert [counts[f"channels/discriminator-{i}"] for i in range(1, 5)] == [64, 128, 256, 512]
    assert counts["receptive_field/discriminator"] == 70
    assert counts["output_side/discriminator-256"] == 30


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_depends_on_its_patch_and_on_nothing_else(layers: int, patch: int) -> None:
    """By the gradient's support, with normalisation, whose statistics see the whole picture, left out."""
    judge = Discriminator(4, layers).double()
    layers_ = [nn.Identity() if isinstance(layer, nn.GroupNorm) else layer for layer in judge]
    x = pictures(1, 128).requires_grad_()
    out = nn.Sequential(*layers_)(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(0).nonzero()
    assert (touched.max(0).values - touched.min(0).values + 1).tolist() == [patch, patch]
    assert receptive_field(judge) == patch


@torch.no_grad()
def test_pictures_of_a_batch_do_not_meet() -> None:
    G = networks()[0]["x"]
    x = pictures(3)
    torch.testing.assert_close(G(x), torch.cat([G(one[None]) for one in x]), rtol=1e-12, atol=1e-12)
    assert G(x).shape == x.shape
    assert G(x).abs().max() < 1


def test_initial_weights() -> None:
    made = Networks(Generator(32, 2), Generator(32, 2))
    made.initialise(3, "generators", 0.02)
    weights = torch.cat([p.detach().flatten() for p in made.parameters() if p.ndim > 1])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert all(p.abs().max() == 0 for p in made.parameters() if p.ndim == 1)
    again = Networks(Generator(32, 2), Generator(32, 2))
    again.initialise(3, "generators", 0.02)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_what_cannot_be_trained_is_refused() -> None:
    smoke = PRESETS["smoke"]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"crop_size": 30}, "multiple of 4"),
        ({"crop_size": 4}, "at least 8"),
        ({"discriminator_layers": 3}, "lower discriminator_layers"),
        ({"pool_size": -1}, "pool_size -1: take 0 or more"),
        ({"constant_epochs": 0, "decay_epochs": 0}, "no epochs"),
        ({"gan": False, "lambda_forward": 0.0, "lambda_backward": 0.0}, "nothing to learn from"),
    ]
    for changes, said in bad:
        with pytest.raises(UserError, match=said):
            check(replace(smoke, **changes))
    for side, layers in ((8, 1), (12, 2), (24, 3)):
        check(replace(smoke, crop_size=side, discriminator_layers=layers))
        assert Discriminator(4, layers)(torch.randn(1, 3, side, side)).shape[-1] >= 1
    for preset in PRESETS.values():
        check(preset)


# ---- Objective


def plain_loss(
    g: Networks, d: Networks, x: Tensor, y: Tensor, gan: bool, forward: float, backward: float, identity: float
) -> Tensor:
    """Equation 3 and the identity term, a call for each picture."""
    G, F, D_X, D_Y = g["y"], g["x"], d["x"], d["y"]
    value = forward * (F(G(x)) - x).abs().mean() + backward * (G(F(y)) - y).abs().mean()
    if gan:
        value = value + (D_Y(G(x)) - 1).pow(2).mean() + (D_X(F(y)) - 1).pow(2).mean()
    idle = backward * (G(y) - y).abs().mean() + forward * (F(x) - x).abs().mean()
    return value + identity * idle


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("identity", [0.0, 0.5])
def test_the_objective_is_equation_3(arm: str, identity: float) -> None:
    cfg = PRESETS[f"cityscapes-{arm}"]
    weights = cfg.lambda_forward, cfg.lambda_backward
    g, d = networks()
    d.requires_grad_(False)
    x, y = pictures(seed=1), pictures(seed=2)
    total, fake_x, fake_y, terms = Translation(g, d, cfg.gan, *weights, identity)(x, y)
    expected = plain_loss(g, d, x, y, cfg.gan, *weights, identity)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(total, list(g.parameters()))
    theirs = torch.autograd.grad(expected, list(g.parameters()))
    largest = max(t.abs().max().item() for t in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * largest)
    assert torch.equal(fake_x, g["x"](y))
    torch.testing.assert_close(fake_y, g["y"](x), rtol=1e-12, atol=1e-12)
    assert ("gan_x" in terms) == cfg.gan
    assert ("cycle_x" in terms, "cycle_y" in terms) == (weights[0] > 0, weights[1] > 0)
    assert not any(value.requires_grad for value in terms.values())


def test_without_lambdas_it_is_a_gan_alone() -> None:
    g, d = networks()
    total, _, _, terms = Translation(g, d, True, 0.0, 0.0, 0.5)(pictures(), pictures(seed=1))
    torch.testing.assert_close(total, terms["gan_x"] + terms["gan_y"])
    assert {"cycle_x", "cycle_y"}.isdisjoint(terms)


def test_between_equal_domains_doing_nothing_costs_nothing() -> None:
    idle, (_, d) = Networks(nn.Identity(), nn.Identity()), networks()
    x = pictures()
    total, _, _, terms = Translation(idle, d, False, 10.0, 10.0, 0.5)(x, x)
    assert total == 0
    assert set(terms) == {"cycle_x", "cycle_y", "identity_x", "identity_y"}


def test_pairs_take_the_cycles_place() -> None:
    g, d = networks()
    x, y = pictures(), pictures(seed=1)
    total, fake_x, fake_y, terms = Translation(g, d, True, 3.0, 5.0, 0.0, paired=True)(x, y)
    expected = terms["gan_x"] + terms["gan_y"] + 3 * l1(fake_y, y) + 5 * l1(fake_x, x)
    torch.testing.assert_close(total, expected)
    assert {"cycle_x", "cycle_y"}.isdisjoint(terms)


class Constant(nn.Module):
    """Scores real pictures (which are positive) and generated ones alike, or tells them apart perfectly."""

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.knows = knows

    def forward(self, x: Tensor) -> Tensor:
        score = (x.mean((1, 2, 3)) > 0).double() if self.knows else torch.full((len(x),), 0.5, dtype=x.dtype)
        return score[:, None, None, None]


def test_least_squares_of_the_discriminators() -> None:
    real, fake = torch.ones(2, 3, 8, 8), -torch.ones(2, 3, 8, 8)
    for knows, loss in ((True, 0.0), (False, 0.25)):
        total, terms = Judgement(Networks(Constant(knows), Constant(knows)))(real, fake, real, fake)
        assert terms["judge_x"] == terms["judge_y"] == loss
        assert total == 2 * loss
    d = networks()[1]
    x, y, old_x, old_y = (pictures(seed=i) for i in range(4))
    total, _ = Judgement(d)(x, old_x, y, old_y)
    plain = sum(
        0.5 * ((net(real) - 1).pow(2).mean() + net(fake).pow(2).mean())
        for net, real, fake in ((d["x"], x, old_x), (d["y"], y, old_y))
    )
    torch.testing.assert_close(total, plain)
    assert lsgan(torch.full((2, 2), 3, dtype=torch.bfloat16), 1.0).dtype == torch.float32


def test_learning_rate_falls_in_a_straight_line() -> None:
    rates = [linear_decay(epoch, 100, 100) for epoch in range(200)]
    assert rates[:100] == [1.0] * 100
    np.testing.assert_allclose(np.diff(rates[99:]), -1 / 101)
    assert rates[-1] == pytest.approx(1 / 101)
    assert [linear_decay(epoch, 1, 0) for epoch in range(1)] == [1.0]


# ---- Pool


def numbered(first: int, n: int) -> Tensor:
    return torch.arange(first, first + n, dtype=torch.float32)[:, None, None, None].expand(n, 1, 2, 2)


def test_pool_of_size_0_is_the_identity() -> None:
    fresh = numbered(5, 3)
    assert torch.equal(Pool(0, (1, 2, 2)).query(fresh, 7, generator("pool")), fresh)


def test_pool_is_the_papers_history_and_depends_on_the_step_alone() -> None:
    size, b, steps = 10, 3, 400
    pool, kept, old, half = Pool(size, (1, 2, 2)), list[int](), 0, torch.empty(0)
    for step in range(steps):
        fresh = numbered(step * b, b)
        given = pool.query(fresh, step, generator(1, "pool", step)).mean((1, 2, 3)).tolist()
        numbers = generator(1, "pool", step)
        swap, places = torch.rand(b, generator=numbers) > 0.5, torch.randint(size, (b,), generator=numbers)
        for i, picture in enumerate(range(step * b, step * b + b)):  # the same by a plain list
            if len(kept) < size:
                kept.append(picture)
                expected = picture
            elif swap[i]:
                expected, kept[places[i]] = kept[places[i]], picture
                old += 1
            else:
                expected = picture
            assert given[i] == expected
        if step == steps // 2:
            half = pool.pictures.clone()
    assert pool.pictures.mean((1, 2, 3)).tolist() == kept
    assert old / (steps * b - size) == pytest.approx(0.5, abs=0.05)
    again = Pool(size, (1, 2, 2))
    again.pictures.copy_(half)  # all there is to restore
    for step in range(steps // 2 + 1, steps):
        again.query(numbered(step * b, b), step, generator(1, "pool", step))
    assert torch.equal(again.pictures, pool.pictures)


# ---- Domains


def test_drawn_scenes_are_fixed_disjoint_and_true_pairs() -> None:
    drawn = load("generated/streets-16", None, 16, 16, 30, 10, False)
    load("generated/colours-16", None, 16, 16, 2, 2, False)  # drives the first out of the cache
    assert load("generated/streets-16", None, 16, 16, 30, 10, False).fingerprint == drawn.fingerprint
    assert drawn.palette is not None
    assert drawn.labelled is not None
    photos, classes = drawn.labelled
    paired = load("generated/streets-16-paired", None, 16, 16, 30, 10, True)
    sets = [drawn.train_x, drawn.test_x, photos]
    assert len({picture.numpy().tobytes() for part in sets for picture in part}) == sum(map(len, sets))
    assert torch.equal(paired.train_x, drawn.train_x)
    labels = {picture.numpy().tobytes() for picture in drawn.train_y}
    assert not labels & {picture.numpy().tobytes() for picture in paired.train_y}
    assert set(classes.unique().tolist()) == set(range(6))
    truth = nearest_colour(scaled(drawn.test_y), drawn.palette)
    assert torch.equal(drawn.palette[truth].to(torch.uint8), drawn.test_y)
    means = torch.stack([drawn.test_x[truth == c].float().mean(0) for c in (0, 2, 4)])  # sky, tree, road look apart
    assert torch.pdist(means).min() > 30


def test_shapes_differ_in_outline_colours_in_colour() -> None:
    colours, shapes = (load(f"generated/{what}-32", None, 32, 32, 2, 20, False) for what in ("colours", "shapes"))
    red_is_blue = [(part.test_x[..., 0] > 180) & (part.test_y[..., 2] > 150) for part in (colours, shapes)]
    assert red_is_blue[0].float().mean() > 0.05
    assert red_is_blue[1].sum() == 0
    for part in (colours, shapes):
        away = (part.test_x.float() - part.test_y.float()).abs().mean((1, 2, 3))
        assert away.min() > 1


def test_batches_are_unpaired_and_a_function_of_the_step() -> None:
    domains = load("generated/streets-16", None, 18, 16, 30, 2, False)._replace(
        train_y=torch.zeros(7, 18, 18, 3, dtype=torch.uint8)
    )
    domains.train_x[:] = torch.arange(30, dtype=torch.uint8)[:, None, None, None]
    domains.train_y[:] = torch.arange(7, dtype=torch.uint8)[:, None, None, None]
    batches = UnpairedBatches(domains, 2, 16, True, 5, False)
    assert batches.per_epoch == 15
    shown = [tuple(unscaled(part)[:, 0, 0, 0] for part in batches(step)) for step in range(30)]
    for epoch in (shown[:15], shown[15:]):
        assert sorted(torch.cat([x for x, _ in epoch]).tolist()) == list(range(30))
        assert set(torch.cat([y for _, y in epoch]).tolist()) <= set(range(7))
    assert [x.tolist() for x, _ in shown[:15]] != [x.tolist() for x, _ in shown[15:]]
    fresh = UnpairedBatches(domains, 2, 16, True, 5, False)
    for step in (29, 3, 14):
        assert all(torch.equal(a, b) for a, b in zip(fresh(step), batches(step), strict=True))
    first = UnpairedBatches(domains, 2, 16, True, 5, False, share=lambda index: index[:1])
    second = UnpairedBatches(domains, 2, 16, True, 5, False, share=lambda index: index[1:])
    assert torch.equal(torch.cat([first(4)[0], second(4)[0]]), batches(4)[0])


def test_partners_are_cut_alike() -> None:
    domains = load("generated/streets-16-paired", None, 18, 16, 8, 2, True)
    domains = domains._replace(train_y=255 - domains.train_x)
    batches = UnpairedBatches(domains, 4, 16, True, 0, True)
    for step in range(6):
        x, y = batches(step)
        torch.testing.assert_close(x, -y)


def folder(root: Path, tests: int = 4) -> Path:
    """A collection laid out as the authors': labels of two classes and void, photos of other sizes."""
    rng = np.random.default_rng(0)
    for part, n, size in (("trainA", 3, (40, 30)), ("trainB", 5, (20, 20)), ("testA", tests, (16, 16))):
        (root / part).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / part / f"{i}_{part[-1]}.jpg")
    (root / "testB").mkdir()
    for i in range(tests):
        label = np.zeros((16, 16, 3), dtype=np.uint8)
        label[:8], label[8:12] = CITYSCAPES[0], CITYSCAPES[10]
        Image.fromarray(label).save(root / "testB" / f"{i}_B.png")
    return root


def test_folders_of_the_original_layout_load_as_they_are(tmp_path: Path) -> None:
    folder(tmp_path / "hub/cyclegan/cityscapes")
    read_ = load("cyclegan/cityscapes", tmp_path, 18, 16, 0, 0, False)
    assert [tuple(part.shape) for part in read_[:4]] == [(3, 18, 18, 3), (5, 18, 18, 3), (4, 16, 16, 3), (4, 16, 16, 3)]
    assert read_.pairs
    assert read_.void
    other = folder(tmp_path / "mine")
    (other / "testA/0_A.jpg").rename(other / "testA/nobody.jpg")
    plain = load(str(other), None, 18, 16, 0, 0, False)
    assert not plain.pairs
    assert plain.palette is None


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    broken = folder(tmp_path / "broken")
    (broken / "trainA/0_A.jpg").write_bytes(b"no picture")
    empty = folder(tmp_path / "empty")
    for file in (empty / "testB").iterdir():
        file.unlink()
    bad: list[tuple[tuple[Any, ...], str]] = [
        (("generated/fish-32", None, 32, 32, 5, 5, False), "known .*generated/streets-32"),
        (("generated/streets-x", None, 32, 32, 5, 5, False), "unknown drawn domains"),
        (("generated/streets-32", None, 32, 32, 0, 5, False), "train_pictures >= 1"),
        (("generated/streets-32", None, 16, 32, 5, 5, False), "does not fit into load_size 16"),
        (("cyclegan/maps", tmp_path, 18, 16, 0, 0, False), "maps cannot be read.*PAPERS_DATA"),
        ((str(broken), None, 18, 16, 0, 0, False), "0_A.jpg cannot be read"),
        ((str(empty), None, 18, 16, 0, 0, False), "testB has no pictures"),
        ((str(broken), None, 18, 16, 0, 0, True), "leave out --paired"),
        (("generated/streets-32", None, 32, 32, 5, 5, True), "name ends in -paired"),
    ]
    for arguments, said in bad:
        with pytest.raises(UserError, match=said):
            load(*arguments)


# ---- Metrics


def test_scores_by_hand() -> None:
    truth = torch.tensor([[[0, 0], [0, 1]], [[1, 1], [2, 2]]])
    guess = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [2, 1]]])
    counts = confusion(truth, guess, 3).sum(1).view(3, 3)
    assert counts.tolist() == [[2, 1, 0], [1, 2, 0], [0, 1, 1]]
    found = scores(counts)
    assert found["pixel_accuracy"] == pytest.approx(5 / 8)
    assert found["class_accuracy"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    assert found["class_iou"] == pytest.approx((2 / 4 + 2 / 5 + 1 / 2) / 3)
    swapped = scores(counts[:, [1, 0, 2]])
    assert swapped["pixel_accuracy"] == pytest.approx(3 / 8)
    assert swapped["pixel_accuracy_permuted"] == found["pixel_accuracy_permuted"] == pytest.approx(5 / 8)


def test_nearest_colour_diversity_and_sheet() -> None:
    palette = torch.tensor(CITYSCAPES)
    classes = torch.arange(20).repeat(2).view(1, 4, 10)
    near = palette[classes].float() + torch.empty(1, 4, 10, 3).uniform_(-4, 4, generator=generator("noise"))
    assert torch.equal(nearest_colour((near / 127.5 - 1).movedim(-1, 1), palette), classes)
    assert diversity(pictures(1).expand(5, -1, -1, -1)) == 0
    a, b = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert diversity(torch.cat([a, b, b])) == pytest.approx(2 / 3)
    whole = torch.randint(256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    assert torch.equal(unscaled(scaled(whole[0])), whole[0])
    sheet = contact_sheet(whole, whole[None].expand(4, -1, -1, -1, -1, -1))
    assert sheet.shape == (5 * 6, 6 * 7, 3)
    assert (sheet[:4, 7:12] == whole[0, 1].numpy()).all()
    assert (sheet[6:10, 21:26] == whole[1, 0].numpy()).all()


# ---- Runs


def test_a_run_leaves_samples_and_measures_both_directions(tmp_path: Path) -> None:
    record = run(tmp_path / "run", "--preset", "smoke", "--dataset", "synthetic/streets-16")
    with Image.open(tmp_path / "run/samples.png") as sheet:
        rows = np.asarray(sheet).reshape(-1, 18, 4 * 18, 3)[:, :16]
    cfg = PRESETS["smoke"]
    steps = (cfg.constant_epochs + cfg.decay_epochs) * cfg.train_pictures // cfg.batch_size
    assert len(rows) == 1 + len({max(1, steps >> i) for i in range(6)})
    assert all((a != b).any() for a, b in pairwise(rows))  # at every time another picture
    for name in ("pixel_accuracy_drawn", "segmenter_class_iou_drawn", "l1_x", "psnr_y", "cycle_l1_x", "diversity_y"):
        assert record.metrics[name] is not None
    assert "pixel_accuracy" not in record.metrics  # the paper's name is for the paper's data


@pytest.mark.parametrize("arm", ["cycle-alone", "gan-alone", "paired"])
def test_arms_train_what_they_name(arm: str, tmp_path: Path) -> None:
    options = {
        "cycle-alone": ["--gan", "False"],
        "gan-alone": ["--lambda-forward", "0", "--lambda-backward", "0"],
        "paired": ["--paired", "True", "--dataset", "synthetic/colours-16-paired"],
    }[arm]
    record = run(tmp_path / "run", "--preset", "smoke", "--lambda-identity", "0", *options)
    names = {
        "cycle-alone": {"cycle_x", "cycle_y"},
        "gan-alone": {"gan_x", "gan_y", "judge_x", "judge_y"},
        "paired": {"gan_x", "gan_y", "judge_x", "judge_y", "pair_x", "pair_y"},
    }
    assert set(record.curves) == names[arm]


def test_cityscapes_folder_is_scored_by_nearest_colour(tmp_path: Path) -> None:
    folder(tmp_path / "cyclegan/cityscapes")
    where = ("--dataset", "cyclegan/cityscapes", "--data-dir", str(tmp_path))
    record = run(tmp_path / "run", "--preset", "smoke", *where)
    assert {"pixel_accuracy", "class_accuracy", "class_iou"} <= record.metrics.keys()
    assert not any(name.startswith("segmenter") or "fcn" in name for name in record.metrics)


def test_evaluation_of_the_truth_itself_is_perfect() -> None:
    """A translator that knows every pair: accuracy 1, no error, the truth's diversity."""
    drawn: Domains = load("generated/streets-16", None, 16, 16, 60, 12, False)
    known = {
        a.numpy().tobytes(): b
        for source, target in ((drawn.test_x, drawn.test_y), (drawn.test_y, drawn.test_x))
        for a, b in zip(source, target, strict=True)
    }

    class Oracle(nn.Module):
        def forward(self, pictures_: Tensor) -> Tensor:
            return scaled(torch.stack([known[one.numpy().tobytes()] for one in unscaled(pictures_)]))

    here: Any = SimpleNamespace(device=torch.device("cpu"), part=(0, 1))
    with torch.no_grad():
        metrics = evaluate(here, drawn, Oracle(), Oracle())
    for name in ("pixel_accuracy_drawn", "class_accuracy_drawn", "class_iou_drawn", "gain_x", "gain_y"):
        assert metrics[name] == pytest.approx(1)
    for name in ("l1_x", "l1_y", "cycle_l1_x", "cycle_l1_y"):
        assert metrics[name] == 0
    assert metrics["diversity_x"] == metrics["diversity_y"] == pytest.approx(1)
    assert metrics["psnr_y"] == pytest.approx(100)
    assert metrics["segmenter_pixel_accuracy_drawn"] == metrics["segmenter_pixel_accuracy_of_photos"] > 0.7
