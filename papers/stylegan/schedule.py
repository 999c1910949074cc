"""Progressive growing as a function of the step (code: `training_schedule`)."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Self

from papers.stylegan.config import Config


class Now(NamedTuple):
    """What holds at a step.

    Attributes:
        stage: of the resolution; 0 is 4x4.
        old: share of the next lower resolution while this one is faded in.
        phase: another number for every stable and every fading phase; its change resets the optimisers.
    """

    stage: int
    old: float
    batch_size: int
    lr: float
    phase: int


class Schedule:
    """Stable and fading phases; what holds is looked up every `repeats` steps.

    Args:
        start, stages: the first stage and their number.
        stable, fade, total: real images of a phase, and of all.
        batch_sizes, lrs: of the stages from 4x4 upwards; the last one goes on.
    """

    def __init__(
        self, start: int, stages: int, stable: int, fade: int, total: int, repeats: int,
        batch_sizes: Sequence[int], lrs: Sequence[float],
    ) -> None:  # fmt: skip
        self.start, self.stages, self.stable, self.fade = start, stages, stable, fade
        self.batch_sizes, self.lrs, self.repeats = batch_sizes, lrs, repeats
        self.begins, self.images = list[int](), 0
        while self.images < total:
            self.begins.append(self.images)
            self.images += repeats * self.at(self.images).batch_size

    @classmethod
    def of(cls, cfg: Config) -> Self:
        """A configuration's."""
        start, stages = cfg.start.bit_length() - 3, cfg.resolution.bit_length() - 2
        return cls(
            start, stages, cfg.stable_images, cfg.fade_images, cfg.total_images, cfg.repeats, cfg.batch_sizes, cfg.lrs
        )

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return len(self.begins) * self.repeats

    def __call__(self, step: int) -> Now:
        """What holds at a step."""
        return self.at(self.begins[step // self.repeats])

    def first(self, step: int) -> int:
        """Real images shown before a step."""
        return self.begins[step // self.repeats] + step % self.repeats * self(step).batch_size

    def at(self, images: int) -> Now:
        """What holds after so many real images."""
        duration = self.stable + self.fade
        grown, within = divmod(images, duration) if duration else (self.stages, 0)
        faded = max(0, within - self.stable) / self.fade if self.fade else 0.0
        place = min(self.start + grown + faded, self.stages - 1)
        stage = math.ceil(place)
        size, lr = self.batch_sizes[: stage + 1][-1], self.lrs[: stage + 1][-1]
        return Now(stage, float(stage - place), size, lr, 2 * stage - (stage > place))

    def step_at(self, images: int) -> int:
        """The first step of those that are looked up together when so many images have been shown."""
        return self.repeats * (bisect_right(self.begins, images) - 1)
