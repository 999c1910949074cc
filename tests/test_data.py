"""Data: batches as a pure function, mirrors, fingerprints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import hub, images
from common.data.batches import Batches
from common.errors import UserError
from common.random import generator, integer


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
@settings(deadline=None)
def test_every_sample_once_an_epoch_in_any_order_of_asking(n: int, batch_size: int, seeds: list[int]) -> None:
    if batch_size > n:
        with pytest.raises(ValueError, match="batch of"):
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
