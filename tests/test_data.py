"""Data: batches as a pure function, mirrors, fingerprints."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.data import hub, images
from common.data.augment import ImageBatches, windows
from common.data.batches import Batches
from common.data.stream import ImageStream
from common.errors import UserError
from common.random import generator, integer


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
def test_every_sample_once_an_epoch_in_any_order_of_asking(n: int, batch_size: int, seeds: list[int]) -> None:
    if batch_size > n:
        with pytest.raises(UserError, match="batch of"):
            Batches(n, batch_size, seeds)
        return
    batches = Batches(n, batch_size, seeds)
    steps = [batches.index(step) for step in range(2 * batches.per_epoch)]
    for epoch in (0, 1):
        seen = torch.cat(steps[epoch * batches.per_epoch : (epoch + 1) * batches.per_epoch], dim=1)
        for row in seen:
            assert len(row.unique()) == len(row) == batches.per_epoch * batch_size
    backwards = Batches(n, batch_size, seeds)
    for step in reversed(range(len(steps))):
        assert torch.equal(backwards.index(step), steps[step])
    for i, seed in enumerate(seeds):
        assert torch.equal(Batches(n, batch_size, [seed]).index(0)[0], steps[0][i])


def test_random_numbers_depend_on_the_key_alone() -> None:
    assert integer(1, "x", 2) == integer(1, "x", 2) != integer(1, "x", 3)
    assert integer(1, 12) != integer(11, 2)
    draws = [torch.randn(3, generator=generator(0, "noise", step)) for step in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_synthetic_images_are_always_the_same() -> None:
    one, two = (images.load("synthetic/12x10x3", None) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert one.train.shape == (512, 12, 10, 3)
    assert one.train.dtype == torch.uint8
    assert one.test_labels.unique().tolist() == list(range(10))
    with pytest.raises(UserError, match="should read synthetic"):
        images.load("synthetic/mnist", None)


def test_digits_are_scikit_learns_and_so_is_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    expected = train_test_split(x / 16, y, test_size=0.3, stratify=y, random_state=0)
    found = images.load("sklearn/digits", None)
    for theirs, ours in zip(expected[:2], (found.train, found.test), strict=True):
        assert np.array_equal(theirs, ours.flatten(1).numpy() / 16)
    for theirs, ours in zip(expected[2:], (found.train_labels, found.test_labels), strict=True):
        assert np.array_equal(theirs, ours.numpy())
    assert (found.train.shape, found.test.shape) == ((1257, 8, 8, 1), (540, 8, 8, 1))
    assert np.abs(found.test_labels.bincount().numpy() - 0.3 * np.bincount(y)).max() < 1  # stratified
    images.load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"comes with scikit-learn, which is missing: pip install"):
        images.load("sklearn/digits", None)


def test_a_mirror_laid_out_like_the_hub_is_read(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    pictures = [Image.fromarray(np.full((4, 5), i, np.uint8)) for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    made = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 3}, features=features)
    folder = tmp_path / "hub" / "someone" / "tiny" / "plain"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    found = images.load("someone/tiny", tmp_path)
    assert found.train.shape == (6, 4, 5, 1)
    assert found.train[:, 0, 0, 0].tolist() == list(range(6))
    assert found.test_labels.tolist() == [0, 1] * 3
    assert found.fingerprint.startswith("sha256:")


def test_what_cannot_be_reached_is_one_line_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"someone/none .* Hub is out of reach; put a copy at DIR/hub/someone/none"):
        hub.load("someone/none", "train", tmp_path)


def test_a_fingerprint_sees_type_shape_and_content() -> None:
    a = np.arange(6, dtype=np.uint8)
    prints = {hub.fingerprint(x) for x in (a, a.reshape(2, 3), a.astype(np.int8), a + 1)}
    assert len(prints) == 4


def test_mnist_is_mnist(papers_data: Path) -> None:
    import hashlib

    found = images.load("ylecun/mnist", papers_data)
    assert found.train.shape == (60000, 28, 28, 1)
    assert found.test.shape == (10000, 28, 28, 1)
    idx_file = np.array([2051, 60000, 28, 28], ">i4").tobytes() + found.train.numpy().tobytes()
    assert hashlib.md5(idx_file).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"


def test_crops_and_flips_depend_on_seed_epoch_and_sample_alone() -> None:
    set_ = images.load("synthetic/12x12x3", None)
    batches = {size: ImageBatches(set_.train, set_.train_labels, size, 7, margin=2) for size in (32, 64)}
    found = {}
    for size, made in batches.items():
        for step in range(made.per_epoch):
            x, y = made(step)
            assert x.shape == (size, 3, 12, 12)
            assert x.is_contiguous(memory_format=torch.channels_last)
            for i, sample in enumerate(made.batches.index(step)[0].tolist()):
                assert y[i] == set_.train_labels[sample]
                found.setdefault(sample, []).append(x[i])
    assert len(found) == 512
    assert all(torch.equal(a, b) for a, b in found.values())
    again = ImageBatches(set_.train, set_.train_labels, 32, 7, margin=2)
    assert not torch.equal(again(0)[0].sort(0)[0], again(again.per_epoch)[0].sort(0)[0])
    assert torch.equal(again(0)[0], batches[32](0)[0])


def test_windows_are_slices_and_the_mean_moves_with_its_pixels() -> None:
    numbers = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (5, 9, 8, 3), generator=numbers, dtype=torch.uint8)
    index, top, left = torch.tensor([4, 0, 4]), torch.tensor([0, 3, 5]), torch.tensor([4, 1, 0])
    flip = torch.tensor([False, True, True])
    found = windows(pictures, index, top, left, 4, flip)
    for i in range(3):
        part = pictures[index[i], top[i] : top[i] + 4, left[i] : left[i] + 4]
        assert torch.equal(found[i], part.flip(1) if flip[i] else part)

    square = pictures[:, :8]
    mean = square.float().mean(0)
    moved = ImageBatches(square, torch.arange(5), 5, 0, margin=3, mean=mean)
    x, y = moved(0)
    centred = torch.nn.functional.pad(square.float() - mean, (0, 0, 3, 3, 3, 3)).permute(0, 3, 1, 2)
    for one, sample in zip(x, y.tolist(), strict=True):  # some cut-out of the centred, then padded image
        cuts = centred[sample].unfold(1, 8, 1).unfold(2, 8, 1)  # (c, top, left, 8, 8)
        assert any(
            torch.equal(one, cut if not mirror else cut.flip(2))
            for cut in cuts.flatten(1, 2).transpose(0, 1)
            for mirror in (0, 1)
        )
    fixed = ImageBatches(square, torch.arange(5), 5, 0, size=4, flip=False, mean=mean[2:6, 2:6])
    x, y = fixed(0)
    cuts = square.permute(0, 3, 1, 2).float().unfold(2, 4, 1).unfold(3, 4, 1)[y].flatten(2, 3).transpose(1, 2)
    expected = cuts - mean[2:6, 2:6].permute(2, 0, 1)  # (5, places, c, 4, 4)
    assert all((expected[i] == x[i]).flatten(1).all(1).any() for i in range(5))


def jpegs(folder: Path, n: int, files: int = 2) -> None:
    """A generated mirror of a labelled JPEG set, the i-th image of brightness i and label i % 3."""
    import datasets
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    folder.mkdir(parents=True)
    for part in range(files):
        numbers = range(part * n // files, (part + 1) * n // files)
        rows = []
        for i in numbers:
            file = io.BytesIO()
            Image.fromarray(np.full((20, 30 + i % 2, 3), 5 * i, np.uint8)).save(file, "JPEG")
            rows.append({"bytes": file.getvalue(), "path": None})
        made = datasets.Dataset.from_dict({"image": rows, "label": [i % 3 for i in numbers]}, features=features)
        made.to_parquet(folder / f"train-{part:05d}-of-{files:05d}.parquet")


def cut(image, numbers):  # type: ignore[no-untyped-def]
    """A random 8 x 8 window."""
    left = int(numbers.integers(image.width - 8))
    return np.asarray(image.crop((left, 0, left + 8, 8)))


def test_a_stream_starts_anywhere_and_shares_its_batches(tmp_path: Path) -> None:
    jpegs(tmp_path / "hub" / "some" / "jpegs" / "data", 25)

    def stream(**more):  # type: ignore[no-untyped-def]
        return ImageStream("some/jpegs", "train", tmp_path, 25, 4, cut, seed=3, workers=2, window=10, **more)

    whole = stream()
    batches = [whole(step) for step in range(14)]  # two epochs of six and more
    for epoch in (0, 1):
        seen = torch.cat([x[:, 0, 0, 0] for x, _ in batches[6 * epoch : 6 * epoch + 6]])
        assert len(seen.unique()) == 24
    assert not torch.equal(batches[0][1], batches[6][1])
    late = stream()
    for step in (8, 9, 2):
        for a, b in zip(late(step), batches[step], strict=True):
            assert torch.equal(a, b)
    halves = [stream(share=lambda places, r=r: places.chunk(2)[r]) for r in (0, 1)]
    assert torch.equal(torch.cat([half(0)[0] for half in halves]), batches[0][0])
    in_order = ImageStream("some/jpegs", "train", tmp_path, 25, 4, cut, workers=2)
    x, y = map(torch.cat, zip(*in_order.once(), strict=True))
    assert y.tolist() == [i % 3 for i in range(25)]
    assert x.shape == (25, 8, 8, 3)
    assert whole.fingerprint() == in_order.fingerprint()
    thirds = [torch.cat([y for _, y in in_order.once(r, 3)]) for r in range(3)]
    assert sorted(torch.cat(thirds).tolist()) == sorted(y.tolist())
    short = ImageStream("some/jpegs", "train", tmp_path, 99, 4, cut, workers=2)
    with pytest.raises(UserError, match="ends after 25 images where 99 are stated"):
        list(short.once())
