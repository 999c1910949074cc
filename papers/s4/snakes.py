"""Pathfinder (Linsley et al. 2018) at 32 x 32 with Long Range Arena's settings: two dashed curves that may touch no
other, five short ones to distract, and two discs, at the ends of one curve (label 1) or of both (label 0).

Our own program after the published rules; each picture is a pure function of (split, number).
"""

import math
from functools import cache

import numba
import numpy as np
from PIL import Image, ImageDraw

from common.random import integer

SIDE, BORDER = 32, 1  # window and padding
PADDLE, MARGIN, SCALE = 2, 1, 2  # length of a dash, distance between dashes, scale of smoothing
LONG, SHORT, DISTRACTORS = 14, 4, 5  # dashes of a curve and of a distractor, and how many of these
SEED_DISTANCE, CONTINUITY, RADIUS = 7, 1.0, 1.5  # of the two curves' first dashes; of discs
CONTRAST, PADDLE_CONTRAST = 2.0, 0.75  # of curves; of the two curves' dashes, times that
TRIALS, SNAKE_TRIALS = 2, 4  # further trials of a dash, and of a distractor
REACH = PADDLE + 1 + MARGIN  # a stamp spans 2 REACH + 1 pixels
FULL, TAKEN = 0.99, 0.3  # parts of a stamp that must be free; what counts as taken


def _ahead(y: int, x: int, angle: float, distance: float) -> tuple[int, int]:
    return math.ceil(y + distance * math.sin(angle)), math.ceil(x + distance * math.cos(angle))


def _smooth(blown: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(blown.astype(np.float32)).resize((side, side), Image.Resampling.LANCZOS))


def _stamp(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A dash from the centre, and the room it takes, both (2 REACH + 1) squared, 0 to 1."""
    from scipy.ndimage import grey_dilation

    side, centre = 2 * REACH * SCALE + 1, REACH * SCALE
    y, x = _ahead(centre, centre, angle, PADDLE * SCALE)
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).line([(centre, centre), (x, y)], fill=1, width=1)
    line = np.asarray(picture, np.float32)
    radius = MARGIN * SCALE
    distance = np.add.outer(np.arange(-radius, radius + 1) ** 2, np.arange(-radius, radius + 1) ** 2)
    room = grey_dilation(line, footprint=distance <= radius**2)
    line, room = (_smooth(part, 2 * REACH + 1).clip(0, 1) for part in (line, room))
    return line, room


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """Stamps of first dashes at every degree (360); where the next head may lie about a pivot (k, 2), its direction
    (k,) and the stamps drawn from it backwards; a disc."""
    around = 2 * math.pi * (PADDLE + MARGIN)
    angles = np.arange(0, 2 * math.pi, 2 * math.pi / around)
    heads = np.unique(np.floor((PADDLE + MARGIN) * np.stack([np.sin(angles), np.cos(angles)], 1)).astype(int), axis=0)
    directions = np.arctan2(heads[:, 0], heads[:, 1])
    first = [_stamp(math.radians(degree)) for degree in range(-180, 180)]
    later = [_stamp(direction + math.pi) for direction in directions]
    fine = (np.arange(2 * (2 * REACH + 1)) + 0.5) / 2 - REACH - 0.5
    disc = _smooth(np.add.outer(fine**2, fine**2) <= RADIUS**2, 2 * REACH + 1).clip(0, 1)
    stacks = [np.stack(part).astype(np.float32) for pair in (first, later) for part in zip(*pair, strict=True)]
    return (*stacks, heads, directions, disc.astype(np.float32))


@numba.njit(cache=True)
def _random(state):
    """Uniform in [0, 1): xorshift64*."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return ((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@numba.njit(cache=True)
def _below(state, n):
    return int(_random(state) * n)


@numba.njit(cache=True)
def _put(target, stamp, y, x, scale):
    """target = max(target, scale * stamp about (y, x))."""
    r = stamp.shape[0] // 2
    for i in range(max(0, y - r), min(SIDE, y + r + 1)):
        for j in range(max(0, x - r), min(SIDE, x + r + 1)):
            target[i, j] = max(target[i, j], scale * stamp[i - y + r, j - x + r])


@numba.njit(cache=True)
def _collides(mask, stamp, y, x, limit):
    """Whether mask + stamp about (y, x) reaches the limit somewhere."""
    r = stamp.shape[0] // 2
    for i in range(max(0, y - r), min(SIDE, y + r + 1)):
        for j in range(max(0, x - r), min(SIDE, x + r + 1)):
            if mask[i, j] + stamp[i - y + r, j - x + r] >= limit:
                return True
    return False


@numba.njit(cache=True)
def _free(mask, room, y, x, edge):
    """Whether a first dash may start at (y, x): its room touches nothing taken, nor the edge."""
    r = room.shape[0] // 2
    for i in range(-r, r + 1):
        for j in range(-r, r + 1):
            if room[i + r, j + r] >= FULL:
                a, b = y + i, x + j
                if a < edge or b < edge or a >= SIDE - edge or b >= SIDE - edge or mask[a, b] > TAKEN:
                    return False
    return True


@numba.njit(cache=True)
def _inside(y, x):
    return 0 <= y < SIDE and 0 <= x < SIDE


@numba.njit(cache=True)
def _first(state, mask, room, edge, place):
    """Choose a first dash: its angle, and where it starts, among all free places. place = (y, x, pivot y, pivot x)."""
    for _ in range(TRIALS + 1):
        degree = _below(state, 360)
        n = 0
        for y in range(SIDE):
            for x in range(SIDE):
                if _free(mask, room[degree], y, x, edge):
                    n += 1
                    if _random(state) * n < 1:
                        place[0], place[1] = y, x
        if n == 0:
            return -1
        if _pivot(place, (degree - 180) * np.pi / 180):
            return degree
    return -1


@numba.njit(cache=True)
def _pivot(place, angle):
    """The point a margin behind a first dash; false where it, or the dash's head, lies outside."""
    y = int(np.ceil(place[0] + PADDLE * np.sin(angle)))
    x = int(np.ceil(place[1] + PADDLE * np.cos(angle)))
    place[2] = int(np.ceil(y - (PADDLE + MARGIN) * np.sin(angle)))
    place[3] = int(np.ceil(x - (PADDLE + MARGIN) * np.cos(angle)))
    return _inside(y, x) and _inside(place[2], place[3])


@numba.njit(cache=True)
def _extend(state, picture, mask, last, place, angle, contrast, lines, rooms, heads, directions, weight):
    """Add a dash to a curve: it likes to go straight on, and may not enter what is taken.

    Args:
        last: room of the curve's newest dash, not yet part of the mask; replaced. place: (head y, head x, pivot).

    Returns:
        the new dash's direction, or NaN where none fits.
    """
    y = int(np.ceil(place[2] + (PADDLE + 2 * MARGIN) * np.sin(angle)))
    x = int(np.ceil(place[3] + (PADDLE + 2 * MARGIN) * np.cos(angle)))
    total = 0.0
    for k in range(len(heads)):
        a, b = y + heads[k, 0], x + heads[k, 1]
        weight[k] = 0.0
        if _inside(a, b):
            turn = abs(directions[k] - angle)
            turn = min(min(turn, 2 * np.pi - turn) * CONTINUITY, np.pi / 2)
            taken = mask[a, b]  # with its four neighbours: a disc of the margin
            for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                if _inside(a + i, b + j):
                    taken = max(taken, mask[a + i, b + j])
            weight[k] = (1 - taken) * np.cos(turn) ** 2
            total += weight[k]
    if total < 1e-4:
        return np.nan
    for _ in range(TRIALS + 1):
        rest, k = _random(state) * total, 0
        while k < len(heads) - 1 and rest >= weight[k]:
            rest -= weight[k]
            k += 1
        a, b = y + heads[k, 0], x + heads[k, 1]
        if not _collides(mask, rooms[k], a, b, 1.8):
            mask[:] = np.maximum(mask, last)
            last[:] = 0
            _put(last, rooms[k], a, b, 1.0)
            _put(picture, lines[k], a, b, contrast)
            place[0], place[1], place[2], place[3] = a, b, y, x
            return directions[k]
    return np.nan


@numba.njit(cache=True)
def _two_curves(state, picture, mask, tips, first_lines, first_rooms, lines, rooms, heads, directions, weight):
    """Two long curves, dash by dash in turn; tips (2, 2, 2): start and end of each. False where one is stuck."""
    picture[:] = 0
    mask[:] = 1
    mask[BORDER:-BORDER, BORDER:-BORDER] = 0
    last, place, angle = np.zeros((2, SIDE, SIDE), np.float32), np.zeros((2, 4), np.int64), np.zeros(2)
    contrast = np.float32(CONTRAST * PADDLE_CONTRAST)
    degree = _first(state, mask, first_rooms, 2 * SEED_DISTANCE, place[0])
    if degree < 0:
        return False
    for snake in range(2):
        if snake:
            placed = False
            for _ in range(TRIALS + 1):
                degree, towards = _below(state, 360), _below(state, 360) * np.pi / 180
                place[1, 0] = int(np.round(place[0, 0] + SEED_DISTANCE * np.sin(towards)))
                place[1, 1] = int(np.round(place[0, 1] + SEED_DISTANCE * np.cos(towards)))
                if _pivot(place[1], (degree - 180) * np.pi / 180):
                    placed = True
                    break
            if not placed:
                return False
        tips[snake, 0, 0], tips[snake, 0, 1] = place[snake, 0], place[snake, 1]
        angle[snake] = (degree - 180) * np.pi / 180
        _put(last[snake], first_rooms[degree], place[snake, 0], place[snake, 1], 1.0)
        _put(picture, first_lines[degree], place[snake, 0], place[snake, 1], contrast)
    for _ in range(LONG - 1):
        for snake in range(2):
            angle[snake] = _extend(
                state, picture, mask, last[snake], place[snake], angle[snake], contrast, lines, rooms, heads,
                directions, weight,
            )  # fmt: skip
            if np.isnan(angle[snake]):
                return False
    for snake in range(2):
        tips[snake, 1, 0], tips[snake, 1, 1] = place[snake, 0], place[snake, 1]
        mask[:] = np.maximum(mask, last[snake])
    return True


@numba.njit(cache=True)
def _draw(start, pictures, labels, first_lines, first_rooms, lines, rooms, heads, directions, disc):
    state, weight = np.zeros(1, np.uint64), np.zeros(len(heads))
    picture, mask = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    tips, place = np.zeros((2, 2, 2), np.int64), np.zeros(4, np.int64)
    for sample in range(len(pictures)):
        x = start + np.uint64(sample + 1) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64: a stream a sample
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state[0] = (x ^ (x >> np.uint64(31))) | np.uint64(1)
        labels[sample] = _below(state, 2)
        while not _two_curves(
            state, picture, mask, tips, first_lines, first_rooms, lines, rooms, heads, directions, weight
        ):
            pass
        for _ in range(DISTRACTORS):
            for _ in range(SNAKE_TRIALS + 1):
                trial, taken, last = picture.copy(), mask.copy(), np.zeros((SIDE, SIDE), np.float32)
                degree = _first(state, taken, first_rooms, BORDER, place)
                if degree < 0:
                    continue
                angle = (degree - 180) * np.pi / 180
                _put(last, first_rooms[degree], place[0], place[1], 1.0)
                _put(trial, first_lines[degree], place[0], place[1], np.float32(CONTRAST))
                for _ in range(SHORT - 1):
                    if not np.isnan(angle):
                        angle = _extend(
                            state, trial, taken, last, place, angle, np.float32(CONTRAST), lines, rooms, heads,
                            directions, weight,
                        )  # fmt: skip
                if not np.isnan(angle):
                    picture[:] = trial
                    mask[:] = np.maximum(taken, last)
                    break
        one = _below(state, 2)
        other = one if labels[sample] == 1 else 1 - one
        _put(picture, disc, tips[one, 0, 0], tips[one, 0, 1], 1.0)
        _put(picture, disc, tips[other, 1, 0], tips[other, 1, 1], 1.0)
        pictures[sample] = np.round(255 * picture / picture.max()).astype(np.uint8)


def pathfinder(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, 32, 32) uint8 and labels (n,) int64: 1 where both discs lie on one curve."""
    pictures, labels = np.empty((n, SIDE, SIDE), np.uint8), np.empty(n, np.int64)
    _draw(np.uint64(integer("pathfinder", split)), pictures, labels, *_tables())
    return pictures, labels
