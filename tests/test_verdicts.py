"""Each verdict is reached by records made for it, and the rule keeps its properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common import claims as claims_module
from common.claims import Claim, PaperClaims
from common.records import Record
from tools.verdicts import half_unit, judge, predictive_interval, welch

FACTS = {
    "paper": {
        "name": "toy",
        "title": "Toy",
        "authors": ["A"],
        "year": 2020,
        "venue": "V",
        "link": "https://example.org",
        "summary": "s",
    },
    "data": [{"name": "set", "source": "here", "fingerprint": "sha256:" + "0" * 64}],
    "unsaid": [
        {"claims": ["toy/table3/*"], "what": "How many.", "filled": "Three."},
        {"claims": ["toy/table1/*"], "what": "Order.", "filled": "Any.", "moves_result": False, "evidence": "measured"},
    ],
    "claim": [],
}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paper of the tests' own: presets a, b and a cut-down one, with one field."""
    from dataclasses import make_dataclass

    config = make_dataclass("Config", [("lr", float, 0.1)], frozen=True)
    known = {"a": config(), "b": config(0.2), "small": config(0.3)}
    monkeypatch.setattr(claims_module, "load", lambda paper: PaperClaims.model_validate(FACTS))
    monkeypatch.setattr(claims_module, "presets", lambda paper: known)


def value(**changes) -> Claim:  # type: ignore[no-untyped-def]
    fields = {
        "id": "toy/table1/x",
        "kind": "value",
        "where": "Table 1",
        "what": "x",
        "metric": "acc",
        "better": "higher",
        "value": "80.0",
        "resolution": 1.0,
        "preset": "a",
    }
    return Claim.model_validate(fields | changes)


def trend(**changes) -> Claim:  # type: ignore[no-untyped-def]
    sides = [{"label": "A", "preset": "a", "metric": "acc"}, {"label": "B", "preset": "b", "metric": "acc"}]
    fields = {"id": "toy/fig1/x", "kind": "trend", "where": "Figure 1", "what": "x", "sides": sides}
    return Claim.model_validate(fields | {"relation": "greater"} | changes)


def record(value: float | None, seed: int, preset: str = "a", **changes) -> Record:  # type: ignore[no-untyped-def]
    lr = {"a": 0.1, "b": 0.2, "small": 0.3, "audit": 0.0}[preset]
    fields = {
        "paper": "toy",
        "preset": preset,
        "overrides": {},
        "config": {"lr": lr} if preset != "audit" else {},
        "seed": seed,
        "stacked": 1,
        "status": "finished" if value is not None else "diverged",
        "claims": [],
        "deviations": {},
        "metrics": {"acc": value},
        "curves": {},
        "data": {},
        "commit": "c",
        "dirty": False,
        "versions": {},
        "device": "CPU",
        "precision": "no",
        "processes": 1,
        "threads": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "wall_seconds": 1.0,
        "steps_per_second": 1.0,
        "peak_memory_mib": 1.0,
    }
    return Record.model_validate(fields | changes)


def runs(values, preset: str = "a", **changes) -> list[Record]:  # type: ignore[no-untyped-def]
    return [record(v, seed, preset, **changes) for seed, v in enumerate(values)]


def test_matched() -> None:
    verdict = judge(value(), runs([79.9, 80.1, 80.0]))
    assert (verdict.name, verdict.n, verdict.settled) == ("matched", 3, True)
    half = stats.t.ppf(0.975, 2) * 0.1 * math.sqrt(1 / 3 + 1) + 0.05
    assert verdict.half_width == pytest.approx(half)
    assert verdict.interval == pytest.approx((80 - half, 80 + half))


def test_beaten_and_short_follow_the_better_side() -> None:
    assert judge(value(), runs([85.0, 85.1, 84.9])).name == "beaten"
    assert judge(value(), runs([75.0, 75.1, 74.9])).name == "short"
    assert judge(value(better="lower"), runs([85.0, 85.1, 84.9])).name == "short"
    assert judge(value(better="lower"), runs([75.0, 75.1, 74.9])).name == "beaten"


def test_too_noisy_names_the_seeds_needed_or_says_none_would_do() -> None:
    noisy = runs([78.0, 80.0, 82.0, 79.0, 81.0])
    alone = judge(value(), noisy)
    assert (alone.name, alone.seeds_needed, alone.settled) == ("too noisy", None, False)
    many = judge(value(runs=100, seeds=5), noisy)
    assert many.name == "too noisy"
    n, sd = many.seeds_needed, np.std([78, 80, 82, 79, 81], ddof=1)
    assert n is not None
    assert stats.t.ppf(0.975, n - 1) * sd * math.sqrt(1 / n + 1 / 100) <= 0.95
    assert stats.t.ppf(0.975, n - 2) * sd * math.sqrt(1 / (n - 1) + 1 / 100) > 0.95


def test_too_few_seeds_and_not_run() -> None:
    assert judge(value(), runs([80.0, 80.1])).name == "too few seeds"
    assert judge(value(runs=10), runs([80.0, 80.1, 79.9])).name == "too few seeds"
    assert judge(value(), []).name == "not run"
    assert judge(value(), runs([80.0] * 3, "b")).name == "not run"


def test_deviates_by_configuration_data_cut_down_preset_precision_or_what_is_unsaid() -> None:
    changed = runs([80.0, 80.1, 79.9], config={"lr": 0.5}, overrides={"lr": 0.5})
    assert judge(value(), changed).deviations == ("lr: 0.1 → 0.5",)
    other = judge(value(), runs([80.0, 80.1, 79.9], data={"set": "sha256:" + "1" * 64}))
    assert (other.name, "set is not the declared one" in other.deviations[0]) == ("deviates", True)
    small = judge(value(cut_down=["small"]), runs([80.0, 80.1, 79.9], "small"))
    assert (small.name, small.deviations) == ("deviates", ("lr: 0.1 → 0.3",))
    assert judge(value(), runs([80.0] * 3, precision="bf16")).deviations == ("precision: mixed bf16",)
    unsaid = judge(value(id="toy/table3/x"), runs([80.0, 80.1, 79.9]))
    assert (unsaid.name, unsaid.ours) == ("deviates", pytest.approx(80.0))
    assert "How many. Filled in: Three." in unsaid.deviations[0]


def test_runs_without_deviation_are_preferred_to_more_runs_with() -> None:
    mixed = runs([70.0] * 9, config={"lr": 0.5}) + [record(v, 10 + i) for i, v in enumerate([79.9, 80.0, 80.1])]
    verdict = judge(value(), mixed)
    assert (verdict.name, verdict.n) == ("matched", 3)


def test_a_diverged_seed_counts() -> None:
    verdict = judge(value(), runs([80.0, 80.1, None, 79.9]))
    assert (verdict.name, verdict.n) == ("short", 4)
    assert "1 of 4 runs ended without a finite value" in verdict.notes[0]


def test_only_runs_that_reached_it_enter_a_conditional_mean() -> None:
    made = [record(v, i, metrics={"acc": v, "solved": s}) for i, (v, s) in enumerate([(80, 100), (80.1, 100), (9, 0)])]
    verdict = judge(value(over="solved"), made)
    assert (verdict.ours, verdict.n) == (pytest.approx(80.05), 3)
    assert "2 of 3 runs enter" in verdict.notes[0]


def test_proportions_compare_like_with_like() -> None:
    claim = value(value="97", statistic="proportion", runs=30, resolution=20.0)
    assert judge(claim, runs([100.0] * 30)).name == "matched"  # 29 of 30 is what 30 of 30 may look like
    assert judge(claim, runs([100.0] * 10 + [0.0] * 20)).name == "short"


def test_best_of_m_and_median_compare_the_same_statistic() -> None:
    ours = runs(list(np.linspace(78, 80, 30)))
    assert judge(value(statistic="best", runs=5, seeds=30, resolution=2.0), ours).name == "matched"
    assert judge(value(statistic="best", runs=5, seeds=30, value="82.0", resolution=2.0), ours).name == "short"
    assert judge(value(statistic="median", runs=5, seeds=30, value="79.0", resolution=2.0), ours).name == "matched"


def test_counts() -> None:
    count = Claim(id="toy/table1/n", kind="count", where="Table 1", what="n", metric="acc", value="264")
    assert judge(count, runs([264.0], "audit")).name == "exact"
    off = judge(count, runs([266.0], "audit"))
    assert (off.name, off.settled) == ("off by +2", True)
    rounded = count.model_copy(update={"value": "0.27"})
    assert judge(rounded, runs([0.272474], "audit")).name == "exact"
    assert judge(rounded, runs([0.2758], "audit")).name == "off by +0.0058"
    newer = record(264.0, 0, "audit", started="2026-02-01T00:00:00+00:00")
    assert judge(count, [*runs([1.0], "audit"), newer]).name == "exact"


def test_trends_hold_fail_or_stay_undecided() -> None:
    high, low, same = [90.0, 90.2, 89.8], [80.0, 80.2, 79.8], [85.0, 95.0, 90.0]
    assert judge(trend(), runs(high) + runs(low, "b")).name == "holds"
    assert judge(trend(), runs(low) + runs(high, "b")).name == "fails"
    assert judge(trend(), runs(high) + runs(same, "b")).name == "undecided"
    assert judge(trend(relation="less"), runs(low) + runs(high, "b")).name == "holds"
    assert judge(trend(), runs(high)).name == "not run"
    assert judge(trend(), runs(high[:2]) + runs(low, "b")).name == "too few seeds"


def test_not_worse_and_equal_within_a_margin() -> None:
    a, b = [90.0, 90.2, 89.8], [90.1, 90.3, 89.9]
    assert judge(trend(relation="not worse", margin=1.0, better="higher"), runs(a) + runs(b, "b")).name == "holds"
    assert judge(trend(relation="not worse", margin=0.1, better="higher"), runs(a) + runs(b, "b")).name == "undecided"
    worse = [80.0, 80.2, 79.8]
    assert judge(trend(relation="not worse", margin=1.0, better="higher"), runs(worse) + runs(b, "b")).name == "fails"
    assert judge(trend(relation="not worse", margin=1.0, better="lower"), runs(worse) + runs(b, "b")).name == "holds"
    assert judge(trend(relation="equal", margin=1.0), runs(a) + runs(b, "b")).name == "holds"
    assert judge(trend(relation="equal", margin=1.0), runs(worse) + runs(b, "b")).name == "fails"


def test_a_trend_on_cut_down_runs_deviates_and_says_what_it_would_say() -> None:
    sides = [
        {"label": "A", "preset": "a", "metric": "acc"},
        {"label": "B", "preset": "b", "metric": "acc", "cut_down": ["small"]},
    ]
    verdict = judge(trend(sides=sides), runs([90.0, 90.2, 89.8]) + runs([80.0, 80.2, 79.8], "small"))
    assert (verdict.name, verdict.would_be, verdict.settled) == ("deviates", "holds", False)


def test_a_trend_compares_runs_that_deviate_alike() -> None:
    half = {"precision": "bf16"}
    first = runs([80.0, 80.1, 80.2], "a") + runs([70.0, 70.1, 70.2, 70.3], "a", **half)
    second = runs([60.0, 60.1, 60.2], "b", **half)
    verdict = judge(trend(), first + second)
    assert (verdict.name, verdict.would_be) == ("deviates", "holds")
    assert [side.runs for side in verdict.sides] == [4, 3]
    assert verdict.sides[0].mean == pytest.approx(70.15)
    assert judge(trend(), first + second + runs([50.0, 50.1, 50.2], "b")).sides[0].mean == pytest.approx(80.1)


def test_costs_within_a_range_and_on_other_hardware() -> None:
    fields = {"id": "toy/fig2/slope", "kind": "cost", "where": "Figure 2", "what": "s", "metric": "acc", "preset": "a"}
    slope = Claim.model_validate(fields | {"range": [0.8, 1.2]})
    assert judge(slope, runs([1.0, 1.02, 0.98])).name == "holds"
    assert judge(slope, runs([2.0, 2.02, 1.98])).name == "fails"
    assert judge(slope, runs([1.0, 1.4, 0.6])).name == "undecided"
    seconds = Claim.model_validate(fields | {"value": "4", "hardware": "GTX Titan X"})
    verdict = judge(seconds, runs([1.0, 1.1, 0.9]))
    assert (verdict.name, verdict.deviations) == ("deviates", ("hardware: GTX Titan X → CPU",))


@pytest.mark.parametrize(("printed", "half"), [("81.5", 0.05), ("100", 0.5), ("0.000195", 5e-7), ("-0.30", 0.005)])
def test_half_a_unit_of_the_last_printed_digit(printed: str, half: float) -> None:
    assert half_unit(printed) == pytest.approx(half)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.integers(1, 100), st.floats(-100, 100))
def test_the_interval_moves_with_the_runs_and_shrinks_with_the_reported_runs(
    values: list[float], m: int, shift: float
) -> None:
    low, high = predictive_interval("mean", np.array(values), m, None)
    moved = predictive_interval("mean", np.array(values) + shift, m, None)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-6)
    tighter = predictive_interval("mean", np.array(values), m + 1, None)
    assert tighter[1] - tighter[0] <= high - low


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20), st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20))
def test_opposite_trends_never_both_hold(a: list[float], b: list[float]) -> None:
    made = runs(a) + runs(b, "b")
    greater, less = judge(trend(), made).name, judge(trend(relation="less"), made).name
    assert {greater, less} in ({"holds", "fails"}, {"undecided"})


@given(st.floats(0, 100), st.floats(0.01, 5))
def test_matched_exactly_where_the_interval_holds_the_reported_value(mean: float, sd: float) -> None:
    claim = value(resolution=1000.0)
    verdict = judge(claim, runs([mean - sd, mean, mean + sd]))
    assert verdict.interval is not None
    inside = verdict.interval[0] <= 80.0 <= verdict.interval[1]
    assert (verdict.name == "matched") == inside


def test_welch_equals_scipy() -> None:
    a, b = [1.0, 2.0, 4.0, 3.5], [0.5, 0.7, 0.2]
    difference, half = welch(a, b)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (difference - half, difference + half) == pytest.approx((interval.low, interval.high))


def test_the_mean_interval_covers_what_the_authors_would_have_printed() -> None:
    """Drawn from the same distribution, a mean of m runs falls inside in 95 of 100 cases."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        low, high = predictive_interval("mean", rng.normal(size=5), 10, None)
        inside += low <= rng.normal(size=10).mean() <= high
    assert 0.935 < inside / 2000 < 0.965
