"""The views of an image that the paper trains and tests on, and the order in which cuda-convnet shows them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from common.data.augment import PerSample, normalise, windows
from common.errors import UserError
from common.random import generator

SIDE = 256  # of the squares that ImageNet's images are made (Section 2)


@dataclass(frozen=True)
class Statistics:
    """Of a training set: mean image (h, w, 3); standard deviations (3,) and directions (3, 3), as rows, of the
    principal components of its pixels' colours."""

    mean: Tensor
    sds: Tensor
    components: Tensor

    def centre(self, size: int) -> Tensor:
        """The mean image's centre, (size, size, 3): subtracted from every crop wherever it was cut (convdata.py)."""
        top, left = ((length - size) // 2 for length in self.mean.shape[:2])
        return self.mean[top : top + size, left : left + size]

    def colour(self, noise: Tensor) -> Tensor:
        """Section 4.1: what is added to all pixels of an image, for noise (b, 3) -> (b, 1, 1, 3).

        The paper multiplies the noise by the eigenvalues, which for pixels up to 255 are in the thousands; the author's
        released code multiplies it by standard deviations (19.7, 37.1 and 121.8: cuda-convnet2, "color_stdevs").
        """
        return ((noise * self.sds) @ self.components)[:, None, None]


def statistics(
    chunks: Iterable[Tensor],
    device: torch.device | str = "cpu",
    total: Callable[[Tensor], Tensor] = lambda x: x,
    shape: tuple[int, ...] = (),
) -> Statistics:
    """Of images in chunks (b, h, w, 3) uint8.

    `total` sums a tensor over processes that each have seen a part; `shape` (h, w, 3) is for one that has seen none.
    """
    count = torch.zeros((), dtype=torch.float64, device=device)
    images, squares = torch.zeros(shape, dtype=torch.float64, device=device), torch.zeros(3, 3, dtype=torch.float64)
    squares = squares.to(device)
    for chunk in chunks:
        pixels = chunk.to(device).double()
        count, images = count + len(pixels), images + pixels.sum(0)
        flat = pixels.reshape(-1, 3)
        squares = squares + flat.T @ flat
    count, images, squares = total(count), total(images), total(squares)
    mean = images / count
    colour = mean.mean((0, 1))
    covariance = squares / (count * mean[..., 0].numel()) - colour[:, None] * colour
    values, vectors = torch.linalg.eigh(covariance.cpu())
    vectors = vectors * vectors.sum(0).sign()  # eigh leaves the sign open
    return Statistics(mean.float(), values.clamp_min(0).sqrt().float().to(device), vectors.T.float().to(device))


def ten_views(images: Tensor, size: int) -> Tensor:
    """Section 4.1: the centre and the four corners, then their reflections. (b, h, w, c) -> (10, b, size, size, c)."""
    bottom, right = images.shape[1] - size, images.shape[2] - size
    places = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    views = torch.stack([images[:, top : top + size, left : left + size] for top, left in places])
    return torch.cat((views, views.flip(3)))


class FileBatches:
    """step -> (x (b, 3, size, size), y (b,)) in cuda-convnet's order, with its random crops and reflections.

    The training set lies in files of `data_batch` images, read in turn. A file is cut into minibatches of its own, the
    last as small as it comes (10,000 = 78 * 128 + 16). Stage by stage, more files are trained on.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        stats: Statistics,
        *,
        seed: int,
        batch_size: int,
        data_batch: int,
        stage_epochs: Sequence[int],
        stage_files: Sequence[int],
        size: int,
        augment: bool = True,
        colour: float = 0.0,
        shuffle: bool = False,
        share: Callable[[Tensor], Tensor] = lambda index: index,
    ) -> None:
        if max(stage_files) * data_batch > len(images):
            raise UserError(f"{max(stage_files)} files of {data_batch} from {len(images)} images; take fewer")
        self.images, self.labels, self.stats, self.seed = images, labels, stats, seed
        self.batch_size, self.data_batch, self.size, self.share = batch_size, data_batch, size, share
        self.augment, self.colour, self.shuffle = augment, colour, shuffle
        self.per_file = -(data_batch // -batch_size)
        self.files = list(stage_files)
        visits = [epochs * files for epochs, files in zip(stage_epochs, stage_files, strict=True)]
        self.ends = [sum(visits[: i + 1]) * self.per_file for i in range(len(visits))]  # step after each stage
        self.first_epochs = [sum(stage_epochs[:i]) for i in range(len(visits))]
        self.draws = PerSample(len(images), seed, images.device)
        self.mean, self._order = stats.centre(size), (-1, torch.empty(0))

    def place(self, step: int) -> tuple[int, int, int]:
        """(epoch, first and last + 1 image of the epoch) of a step."""
        stage = next(i for i, end in enumerate(self.ends) if step < end)
        since = step - (self.ends[stage - 1] if stage else 0)
        epoch, position = divmod(since, self.files[stage] * self.per_file)
        file, minibatch = divmod(position, self.per_file)
        begin = minibatch * self.batch_size
        end = min(begin + self.batch_size, self.data_batch)
        return self.first_epochs[stage] + epoch, file * self.data_batch + begin, file * self.data_batch + end

    def index(self, step: int) -> tuple[int, Tensor]:
        """(epoch, image numbers (b,) of the whole batch)."""
        epoch, begin, end = self.place(step)
        if not self.shuffle:
            return epoch, torch.arange(begin, end, device=self.images.device)
        if self._order[0] != epoch:
            n = self.files[next(i for i, last in enumerate(self.ends) if step < last)] * self.data_batch
            order = torch.randperm(n, generator=generator(self.seed, "order", epoch))
            self._order = epoch, order.to(self.images.device)
        return epoch, self._order[1][begin:end]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, index = self.index(step)
        index = self.share(index)
        spare = self.images.shape[1] - self.size
        if self.augment:
            top, left = self.draws.integers("place", epoch, spare + 1, 2)[index].unbind(1)
            flip = self.draws.integers("flip", epoch, 2)[index, 0] == 1
            x = windows(self.images, index, top, left, self.size, flip)
        else:
            centre = torch.full_like(index, spare // 2)
            x = windows(self.images, index, centre, centre, self.size)
        mean = self.mean
        if self.colour:
            mean = mean - self.colour * self.stats.colour(self.draws.normal("colour", epoch, 3)[index])
        return normalise(x, mean), self.labels[index]


def square(image: PIL.Image.Image, side: int = SIDE) -> np.ndarray:
    """Section 2: the shorter side rescaled to 256, then the central square. -> (256, 256, 3) uint8."""
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def random_crop(image: PIL.Image.Image, rng: np.random.Generator, size: int = 224) -> np.ndarray:
    """Section 4.1: a random crop of that square, reflected half of the time. -> (size, size, 3) uint8."""
    whole = square(image)
    top, left = rng.integers(len(whole) - size + 1, size=2)
    crop = whole[top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:, ::-1] if rng.integers(2) else crop)


def resized(images: Tensor, size: int) -> Tensor:
    """Grey images (n, h, w, 1) uint8 -> (n, size, size, 1), bilinear, one by one as torchvision's `Resize` does."""
    pictures = (PIL.Image.fromarray(image) for image in images[..., 0].cpu().numpy())
    scaled = [np.asarray(p.resize((size, size), PIL.Image.Resampling.BILINEAR)) for p in pictures]
    return torch.from_numpy(np.stack(scaled))[..., None]
