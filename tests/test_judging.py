"""Judging samples: closed forms, brute force, and extractors that are what their name says."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from PIL import Image
from torch import Tensor

from common import checkpoint, extractors, judging, records
from common.errors import UserError
from common.pictures import over_time, save, sheet
from common.threads import on_threads

ALONE = SimpleNamespace(part=(0, 1))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- Frechet distance


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    a, b = torch.tensor([1.0, 4.0, 0.0, 9.0]).double(), torch.tensor([4.0, 0.25, 2.0, 9.0]).double()
    turn = torch.linalg.qr(drawn(4, 4)).Q  # both diagonal in the same basis
    first = (drawn(4, seed=1), turn @ a.diag() @ turn.T)
    second = (drawn(4, seed=2), turn @ b.diag() @ turn.T)
    expected = (first[0] - second[0]).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    rounding = 1e-7  # the root of a variance of zero that the rotation has made 1e-16
    assert judging.frechet_distance(first, second) == pytest.approx(expected.item(), abs=rounding)
    assert judging.frechet_distance(first, first) == pytest.approx(0, abs=rounding)


@pytest.mark.parametrize("n", [500, 20])  # 20 samples of 30 features: singular covariances
def test_frechet_distance_is_that_by_scipys_root(n: int) -> None:
    x, y = drawn(n, 30) @ drawn(30, 30, seed=1), drawn(n, 30, seed=2) @ drawn(30, 30, seed=3) + 0.3
    (m1, c1), (m2, c2) = judging.moments(x), judging.moments(y)
    np.testing.assert_allclose(c1, np.cov(x, rowvar=False), rtol=1e-10)
    root = scipy.linalg.sqrtm((c1 @ c2).numpy()).real
    expected = float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * np.trace(root)
    assert judging.frechet_distance((m1, c1), (m2, c2)) == pytest.approx(expected, rel=1e-6)


# ---- inception score


def test_inception_score_at_its_ends_and_by_scipys_entropy() -> None:
    classes = torch.eye(10).repeat(20, 1)
    assert judging.inception_score(classes) == (pytest.approx(10), pytest.approx(0, abs=1e-9))
    assert judging.inception_score(torch.full((200, 10), 0.1))[0] == pytest.approx(1)
    p = drawn(103, 7).softmax(1)
    parts = np.array_split(p.numpy(), 4)
    each = [np.exp(scipy.stats.entropy(q, q.mean(0, keepdims=True), axis=1).mean()) for q in parts]
    assert judging.inception_score(p, 4) == (pytest.approx(np.mean(each)), pytest.approx(np.std(each)))


# ---- precision and recall


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k: int) -> None:
    real, fake = drawn(25, 3), 0.7 * drawn(30, 3, seed=1) + 0.4

    def covered(points: Tensor, balls: Tensor) -> float:
        inside = 0
        for p in points:
            for i, centre in enumerate(balls):
                others = sorted((centre - o).norm().item() for j, o in enumerate(balls) if j != i)
                if (p - centre).norm().item() <= others[k - 1]:
                    inside += 1
                    break
        return inside / len(points)

    expected = covered(fake, real), covered(real, fake)
    assert judging.precision_recall(real, fake, k, rows=7) == pytest.approx(expected)
    assert 0 < expected[1] < 1
    assert judging.precision_recall(real, real) == (1.0, 1.0)
    assert judging.precision_recall(real, fake + 100) == (0.0, 0.0)


# ---- nearest neighbours


def brute_force(queries: Tensor, references: Tensor) -> Tensor:
    return torch.stack([(references.double() - q.double()).square().sum(1).argmin() for q in queries])


@pytest.mark.parametrize("share", [0, 0.05, 1])  # of pairs that may be left over for the product not to be made
@pytest.mark.parametrize("offset", [0.0, 3.0])  # far from zero a float32 product alone mixes near ones up
def test_nearest_is_brute_force_however_the_references_come(
    offset: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging.Nearest, "AXES", 5)
    monkeypatch.setattr(judging.Nearest, "SHARE", share)
    monkeypatch.setattr(judging.Nearest, "BLOCK", 64)
    generator = torch.Generator().manual_seed(0)
    queries = torch.rand(50, 30, generator=generator) + offset
    references = queries[torch.randint(50, (300,), generator=generator)]
    references = references + 1e-3 * torch.randn(300, 30, generator=generator)
    labels = torch.arange(300)
    expected = brute_force(queries, references)
    for sizes in ([300], [1, 2, 297], [100, 100, 100]):
        nearest = judging.Nearest(queries)
        for x, y in zip(references.split(sizes), labels.split(sizes), strict=True):
            nearest.add(x, y)
        assert torch.equal(nearest.label, expected)
        assert nearest.error(ALONE, expected) == 0  # type: ignore[arg-type]
        wrong = torch.where(torch.arange(50) < 5, -1, expected)
        assert nearest.error(ALONE, wrong) == 10  # type: ignore[arg-type]


def test_of_equally_near_references_the_first_counts() -> None:
    queries = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    nearest = judging.Nearest(queries)
    nearest.add(queries.repeat(30, 1) + 0.5, torch.arange(150))  # thirty copies: more than are compared
    assert torch.equal(nearest.label, brute_force(queries, queries + 0.5))
    before = nearest.label.clone()
    nearest.add(queries + 0.5, torch.full((5,), 999))
    assert torch.equal(nearest.label, before)


# ---- path length


def test_path_length_of_a_linear_generator_is_the_closed_form() -> None:
    a, start, end, at = drawn(6, 4), drawn(10, 4, seed=1), drawn(10, 4, seed=2), drawn(10, 1, seed=3).sigmoid()
    found = judging.path_length(lambda z: z @ a.T, lambda x: 3 * x, start, end, at)
    torch.testing.assert_close(found, ((end - start) @ (3 * a).T).square().sum(1), rtol=1e-6, atol=0)


def test_path_length_along_a_great_circle_is_its_angle() -> None:
    start, end, at = drawn(10, 4), drawn(10, 4, seed=1), drawn(10, 1, seed=2).sigmoid()
    found = judging.path_length(lambda z: z, lambda x: x, start, end, at, judging.slerp)
    angle = torch.nn.functional.cosine_similarity(start, end).acos()
    torch.testing.assert_close(found, angle**2, rtol=1e-6, atol=0)
    way = judging.slerp(start, end, torch.ones(10, 1).double())
    torch.testing.assert_close(way, torch.nn.functional.normalize(end))


def test_the_extremes_do_not_count() -> None:
    values = drawn(1003).square()
    low = np.percentile(values, 1, method="lower")
    high = np.percentile(values, 99, method="higher")
    expected = np.mean([v for v in values.numpy() if low <= v <= high])
    assert judging.trimmed_mean(values) == pytest.approx(expected)
    assert judging.trimmed_mean(torch.tensor([*[1.0] * 998, 1e9, -1e9])) == pytest.approx(1)


# ---- names, counts


class Plain:
    """Features are the pixels."""

    name = "plain_00000000"

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return pictures.flatten(1), pictures.flatten(1).softmax(1)


def test_scores_say_what_they_depend_on() -> None:
    x = torch.rand(101, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = judging.look(ALONE, Plain(), 101, 8, lambda part: x[part])  # type: ignore[arg-type]
    torch.testing.assert_close(seen.features, (x * 255).round().flatten(1) / 255)
    found = judging.scores(Plain.name, seen, seen, "test")
    against = "plain_00000000_u8_n101_test101"
    assert found[f"fid_{against}"] == pytest.approx(0, abs=1e-6)
    assert (found[f"precision_{against}"], found[f"recall_{against}"]) == (1, 1)
    assert set(found) == {
        *(f"{name}_{against}" for name in ("fid", "precision", "recall")),
        "is_plain_00000000_u8_n101",
        "is_sd_plain_00000000_u8_n101",
    }
    with pytest.raises(RuntimeError, match="judged 96 of 101"):
        judging.look(ALONE, Plain(), 101, 8, lambda part: x[part][: 8 if part.stop < 97 else 0])  # type: ignore[arg-type]


# ---- extractors


def run_like(read: dict[str, str], data_dir: Path | None = None) -> SimpleNamespace:
    command = SimpleNamespace(options=SimpleNamespace(record=False))
    return SimpleNamespace(
        data_dir=data_dir, device=torch.device("cpu"), read=read.__setitem__, command=command, part=(0, 1)
    )


def test_the_classifier_is_trained_once_and_again_to_the_same_bits(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    trainings = []
    train = extractors.train
    monkeypatch.setattr(extractors, "train", lambda *given: (trainings.append(given[3]), train(*given)))
    read: dict[str, str] = {}
    first = extractors.classifier(run_like(read), "synthetic/16x16x1", tmp_path / "a")  # type: ignore[arg-type]
    again = extractors.classifier(run_like(read), "synthetic/16x16x1", tmp_path / "a")  # type: ignore[arg-type]
    with on_threads(2):
        anew = extractors.classifier(run_like(read), "synthetic/16x16x1", tmp_path / "b")  # type: ignore[arg-type]
        assert torch.get_num_threads() == 2
    other = extractors.classifier(run_like(read), "synthetic/20x20x1", tmp_path / "a")  # type: ignore[arg-type]
    assert trainings == [first.name, first.name, other.name]
    assert first.fingerprint == again.fingerprint == anew.fingerprint != other.fingerprint
    assert first.name == anew.name != other.name
    assert read[f"classifier/{first.name}"] == first.fingerprint

    (home,) = (path for path in (tmp_path / "a").glob(f"{first.name}-*") if path.is_dir())
    (path,) = home.glob("records/*.json")
    record = records.read(path)
    assert record.metrics["test_error"] == pytest.approx(first.error)
    assert first.error < 80  # of ten classes, after sixteen steps
    assert list(record.data) == ["synthetic/16x16x1"]
    for state in home.glob("step-*/state.pt"):
        state.write_bytes(b"torn")
    mended = extractors.classifier(run_like(read), "synthetic/16x16x1", tmp_path / "a")  # type: ignore[arg-type]
    assert mended.fingerprint == first.fingerprint
    assert checkpoint.load(home, {})[0] > 0


def test_the_classifier_sees_pictures_as_it_was_trained_to(tmp_path: Path) -> None:
    data = extractors.images.load("synthetic/16x16x1", None)
    extractor = extractors.classifier(run_like({}), "synthetic/16x16x1", tmp_path)  # type: ignore[arg-type]
    features, probabilities = extractor(data.test.permute(0, 3, 1, 2) / 255)
    assert features.shape == (128, 128)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(128))
    error = 100 * (probabilities.argmax(1) != data.test_labels).double().mean().item()
    assert error == pytest.approx(extractor.error)


def test_inception_is_read_where_it_is_and_known_by_its_hash(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    class Net(torch.nn.Module):
        """NVIDIA's interface."""

        def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
            means = x.float().mean((2, 3))
            return means if return_features else means.softmax(1)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"the Inception network cannot be read: .* set PAPERS_DATA"):
        extractors.Inception(tmp_path, torch.device("cpu"))
    path = tmp_path / "hub" / extractors.INCEPTION / extractors.INCEPTION_FILE
    path.parent.mkdir(parents=True)
    torch.jit.script(Net()).save(str(path))
    with pytest.raises(UserError, match="not the Inception network of FID"):
        extractors.Inception(tmp_path, torch.device("cpu"))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    net = extractors.Inception(tmp_path, torch.device("cpu"), sha256)
    features, probabilities = net(torch.full((2, 1, 4, 4), 0.5))
    assert torch.equal(features, torch.full((2, 3), 128.0))
    torch.testing.assert_close(probabilities, torch.full((2, 3), 1 / 3))
    assert net.name == f"inception_{sha256[:8]}"


def test_a_sheet_has_its_pictures_row_by_row() -> None:
    x = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 2, 4)
    made = sheet(x, 3)
    assert made.shape == (4, 12, 3)
    assert made[0, 0].tolist() == [0, 0, 0]
    assert made[0, 4].tolist() == [64, 64, 64]
    assert made[3, 5].tolist() == [255, 255, 255]
    assert made[3, 11].tolist() == [0, 0, 0]


def test_sheets_side_by_side_are_what_happens_over_time(tmp_path: Path) -> None:
    sheets = [tmp_path / f"{i:02d}.png" for i in range(7)]
    for i, path in enumerate(sheets):
        save(path, torch.full((6, 1, 2, 4), i / 255), 3)
    over_time(tmp_path / "all.png", sheets, 4, most=3)
    with Image.open(tmp_path / "all.png") as made:
        assert (made.height, made.width) == (4, 12)
        assert [made.getpixel((4 * i, 3)) for i in range(3)] == [0, 3, 6]
