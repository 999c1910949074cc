"""Verdicts: computed from a claim and its records, never typed. Loads neither torch nor a paper's model."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from common.claims import Claim, Side, deviations
from common.records import Record

CONFIDENCE = 0.95
SETTLED = {"matched", "beaten", "short", "holds", "fails", "exact", "off"}


@dataclass(frozen=True)
class Measured:
    """One side's runs through one metric."""

    label: str
    values: tuple[float, ...] = ()
    failed: int = 0  # runs without a finite value
    runs: int = 0  # all runs
    deviations: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()

    @cached_property
    def mean(self) -> float | None:
        return float(np.mean(self.values)) if self.values else None

    @cached_property
    def sd(self) -> float | None:
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """What the records say about a claim.

    Attributes:
        name: the verdict; `off by n` for a count.
        ours: our statistic, where there is one number.
        interval: the 95 % interval of what the authors would have printed had they drawn from our runs; for a trend,
            of the difference that decides it.
        half_width: the smallest difference this row can see.
        seeds_needed: for `too noisy`, how many seeds would settle it; None where no number would.
        would_be: for a trend that deviates, what its runs would say.
    """

    name: str
    ours: float | None = None
    interval: tuple[float, float] | None = None
    half_width: float | None = None
    seeds_needed: int | None = None
    would_be: str = ""
    notes: tuple[str, ...] = ()
    sides: tuple[Measured, ...] = field(default=())

    @property
    def settled(self) -> bool:
        return self.name.split()[0] in SETTLED

    @property
    def n(self) -> int:
        return min((side.runs for side in self.sides), default=0)

    @cached_property
    def deviations(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line for side in self.sides for line in side.deviations))

    @cached_property
    def records(self) -> tuple[Record, ...]:
        return tuple({id(r): r for side in self.sides for r in side.records}.values())

    @cached_property
    def seconds(self) -> float:
        """Time all its runs took."""
        return sum(record.seconds_per_seed for record in self.records)


def half_unit(printed: str) -> float:
    """Half a unit of the last printed digit: `81.5` → 0.05, `31,390` printed as "31390" → 0.5."""
    exponent = Decimal(printed).as_tuple().exponent
    return 0.5 * 10.0 ** int(exponent)


Groups = dict[tuple[str, ...], list[Record]]  # runs that deviate alike


def group(claim: Claim, side: Side, records: Iterable[Record]) -> Groups:
    """A side's runs by their deviations."""
    groups: Groups = {}
    known: dict[tuple[Any, ...], tuple[str, ...]] = {}  # the seeds of one configuration deviate alike
    for record in records:
        if record.preset in side.presets and side.metric in record.metrics:
            device = record.device if claim.hardware else ""
            key = record.config_text, *record.data.items(), record.precision, device
            if key not in known:
                known[key] = tuple(deviations(claim, side, record.config, record.data, record.precision, device))
            groups.setdefault(known[key], []).append(record)
    return groups


def choose(all_groups: Sequence[Groups]) -> list[tuple[str, ...]]:
    """The group that counts on each side: without deviation, else the largest; alike on all sides where that can be."""

    def rank(found: tuple[str, ...], sides: Sequence[Groups]) -> tuple[bool, int, int, tuple[str, ...]]:
        return bool(found), -min(len(groups[found]) for groups in sides), len(found), found

    alike = set.intersection(*map(set, all_groups))
    if alike:
        return [min(alike, key=lambda found: rank(found, all_groups))] * len(all_groups)
    return [min(groups, key=lambda found: rank(found, [groups]), default=()) for groups in all_groups]


def measure(claim: Claim, side: Side, groups: Groups, chosen: tuple[str, ...]) -> Measured:
    """The runs of the chosen group, through the side's metric."""
    members = sorted(groups.get(chosen, []), key=lambda record: record.seed)
    counted = [r for r in members if claim.over is None or r.metrics.get(claim.over)]
    values = [r.metrics[side.metric] for r in counted]
    finite = tuple(v for v in values if v is not None)
    return Measured(side.label, finite, len(values) - len(finite), len(members), chosen, tuple(members))


def judge(claim: Claim, records: Sequence[Record]) -> Verdict:
    """Compute a claim's verdict from records (those of other claims are passed over)."""
    wanted = claim.measured_by()
    groups = [group(claim, side, records) for side in wanted]
    chosen = choose(groups) if groups else []
    sides = tuple(measure(claim, *one) for one in zip(wanted, groups, chosen, strict=True))
    if not sides or not all(side.runs for side in sides):
        ran = tuple(side for side in sides if side.runs)
        return Verdict("not run", ours=ran[0].mean if len(sides) == 1 and ran else None, sides=ran)
    if claim.kind == "count":
        return _count(claim, sides)
    judged = _trend(claim, sides) if claim.kind == "trend" else _value(claim, sides[0])
    notes = (*judged.notes, *_notes(sides))
    name, would_be = judged.name, ""
    if any(side.deviations for side in sides):
        name, would_be = "deviates", judged.name if claim.kind == "trend" or claim.range else ""
    elif min(side.runs for side in sides) < claim.seeds_asked:
        name = "too few seeds"
    return Verdict(name, judged.ours, judged.interval, judged.half_width, judged.seeds_needed, would_be, notes, sides)


def _notes(sides: Sequence[Measured]) -> list[str]:
    notes = []
    for side in sides:
        if side.failed:
            notes.append(f"{side.label}: {side.failed} of {side.runs} runs ended without a finite value")
        left_out = side.runs - side.failed - len(side.values)
        if left_out:
            notes.append(f"{side.label}: {len(side.values)} of {side.runs} runs enter, the others did not reach it")
        dirty = sum(bool(r.dirty) for r in side.records)
        if dirty:
            notes.append(
                f"{side.label}: {dirty} of {side.runs} runs were made from sources that differ from their commit"
            )
    return notes


def _count(claim: Claim, sides: tuple[Measured, ...]) -> Verdict:
    newest = max(sides[0].records, key=lambda record: record.started)
    ours = newest.metrics[claim.metric]
    assert claim.value is not None
    if ours is None:
        return Verdict("not run", sides=sides)
    difference = ours - float(claim.value)
    if abs(difference) <= half_unit(claim.value) * (1 + 1e-9):
        return Verdict("exact", ours, sides=sides)
    return Verdict(f"off by {difference:+.6g}", ours, sides=sides)


def _value(claim: Claim, side: Measured) -> Verdict:
    if not side.values:
        return Verdict("short", sides=(side,))
    values = np.array(side.values)
    n, m = len(values), claim.runs
    ours = statistic(claim.statistic, values, claim.better)
    if claim.kind == "cost" and claim.range is not None:
        low, high = claim.range
        if n < 2:
            return Verdict("undecided", ours)
        half = _t(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
        inside, outside = low <= ours - half and ours + half <= high, ours + half < low or ours - half > high
        return Verdict(
            "holds" if inside else "fails" if outside else "undecided", ours, (ours - half, ours + half), half
        )
    assert claim.value is not None
    if n < 2:
        return Verdict("too few seeds", ours)
    low, high = predictive_interval(claim.statistic, values, m, claim.better)
    margin = half_unit(claim.value)
    low, high = low - margin, high + margin
    half = (high - low) / 2
    reported = float(claim.value)
    if claim.kind == "cost":  # a time on other hardware informs, and decides nothing
        return Verdict("too few seeds", ours, (low, high), half)
    if side.failed:
        return Verdict("short", ours, (low, high), half)
    if reported < low or reported > high:
        we_are_higher = reported < low
        return Verdict("beaten" if we_are_higher == (claim.better == "higher") else "short", ours, (low, high), half)
    assert claim.resolution is not None
    if half > claim.resolution:
        return Verdict("too noisy", ours, (low, high), half, seeds_needed(claim, values))
    return Verdict("matched", ours, (low, high), half)


def statistic(kind: str, values: np.ndarray, better: str | None) -> float:
    """The paper's statistic of our runs: mean (also of a proportion), median or best."""
    if kind == "median":
        return float(np.median(values))
    if kind == "best":
        return float(values.max() if better == "higher" else values.min())
    return float(values.mean())


def predictive_interval(kind: str, values: np.ndarray, m: int, better: str | None) -> tuple[float, float]:
    """95 % interval of the statistic of m further runs, given ours.

    Mean: t interval, mean ± t s sqrt(1/n + 1/m). Proportion (values 0 or 100): beta-binomial with Jeffreys' prior.
    Median and best: bootstrap over our runs, then over m draws from them.
    """
    n = len(values)
    tail = (1 - CONFIDENCE) / 2
    if kind == "mean":
        half = _t(n - 1) * float(values.std(ddof=1)) * math.sqrt(1 / n + 1 / m)
        return float(values.mean()) - half, float(values.mean()) + half
    if kind == "proportion":
        successes = int(np.count_nonzero(values))
        below = list(accumulate(_beta_binomial(m, successes + 0.5, n - successes + 0.5)))
        low, high = (next((k for k, p in enumerate(below) if p >= at), m) for at in (tail, 1 - tail))
        return 100 * low / m, 100 * high / m
    rng = np.random.default_rng(0)
    ours = rng.choice(values, (4000, n))
    drawn = np.take_along_axis(ours, rng.integers(n, size=(4000, m)), axis=1)
    if kind == "median":
        printed = np.median(drawn, axis=1)
    else:
        printed = drawn.max(axis=1) if better == "higher" else drawn.min(axis=1)
    low, high = np.quantile(printed, [tail, 1 - tail])
    return float(low), float(high)


def seeds_needed(claim: Claim, values: np.ndarray) -> int | None:
    """Seeds that bring the half-width down to the claim's resolution; None where the paper's own noise forbids it."""
    assert claim.value is not None
    assert claim.resolution is not None
    sd, room = float(values.std(ddof=1)), claim.resolution - half_unit(claim.value)
    if claim.statistic != "mean" or room <= 0 or _t(10**6) * sd * math.sqrt(1 / claim.runs) >= room:
        return None
    n = len(values)
    while _t(n - 1) * sd * math.sqrt(1 / n + 1 / claim.runs) > room:
        n = n + 1 if n < 1000 else int(n * 1.1)
    return n


def _trend(claim: Claim, sides: tuple[Measured, ...]) -> Verdict:
    """Welch's t-test of the first side against each other one, or of each against the next."""
    pairs = list(pairwise(sides)) if claim.compare == "chain" else [(sides[0], side) for side in sides[1:]]
    outcomes = [_compare(claim, first, second) for first, second in pairs]
    names = Counter(name for name, _ in outcomes)
    # The pair that decides: a failing one, else one that is undecided, else the closest call.
    deciding = "fails" if names["fails"] else "undecided" if names["undecided"] else "holds"
    interval = next(interval for name, interval in outcomes if name == deciding)
    half = (interval[1] - interval[0]) / 2 if interval else None
    return Verdict(deciding, interval=interval, half_width=half)


def _compare(claim: Claim, first: Measured, second: Measured) -> tuple[str, tuple[float, float] | None]:
    if first.failed or second.failed or len(first.values) < 2 or len(second.values) < 2:
        return "undecided", None
    difference, half = welch(first.values, second.values)
    low, high = difference - half, difference + half
    interval = (low, high)
    if claim.relation == "equal":
        assert claim.margin is not None
        if -claim.margin < low and high < claim.margin:
            return "holds", interval
        return ("fails" if low > claim.margin or high < -claim.margin else "undecided"), interval
    floor = 0.0
    if claim.relation == "less" or (claim.relation == "not worse" and claim.better == "lower"):
        low, high = -high, -low
    if claim.relation == "not worse":
        assert claim.margin is not None
        floor = -claim.margin
    return ("holds" if low > floor else "fails" if high < floor else "undecided"), interval


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """(difference of means, half-width of its 95 % interval) by Welch's t-test."""
    a, b = np.array(first), np.array(second)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    difference = float(a.mean() - b.mean())
    if va + vb == 0:
        return difference, 0.0
    share = va / (va + vb)  # so that tiny variances do not vanish when squared
    freedom = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    return difference, _t(freedom) * math.sqrt(va + vb)


def _beta_binomial(m: int, a: float, b: float) -> list[float]:
    """Probability of 0 to m successes in m trials whose rate is Beta(a, b) (scipy.stats takes a second to import)."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    ways = [math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) for k in range(m + 1)]
    return [math.exp(ways[k] + log_beta(k + a, m - k + b) - log_beta(a, b)) for k in range(m + 1)]


@cache
def _t(freedom: float) -> float:
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2))
