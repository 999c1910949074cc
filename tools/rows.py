"""One claim as every reader sees it: terminal, page, plots, JSON."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.claims import Claim, config_differences, load, presets, unsaid_of
from common.paths import RECORDS, paper_names
from common.records import Record, load_all
from tools.verdicts import Verdict, half_unit, judge

Judged = list[tuple[Claim, Verdict]]
ORDER = ["matched", "beaten", "holds", "exact", "short", "fails", "off"]
ORDER += ["too noisy", "undecided", "too few seeds", "deviates", "not run"]
SEEN = "sequences"  # where a seed logs how many it has seen, that is the axis of its other curves


def judge_all(papers: Iterable[str] | None = None, folder: Path = RECORDS) -> dict[str, Judged]:
    """Every claim of the papers with its verdict, by the records below a folder: paper -> [(claim, verdict)]."""
    return {paper: judge_paper(paper, load_all(paper, folder)) for paper in papers or paper_names()}


def judge_paper(paper: str, records: Iterable[Record]) -> Judged:
    """Every claim of one paper with its verdict by these records."""
    by_preset: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_preset[record.preset].append(record)
    result = []
    for claim in load(paper).claim:
        wanted = dict.fromkeys(preset for side in claim.measured_by() for preset in side.presets)
        result.append((claim, judge(claim, [r for preset in wanted for r in by_preset[preset]])))
    return result


def reported(claim: Claim) -> str:
    """The reported value as printed, or the trend in words."""
    if claim.kind == "trend":
        sign = {"greater": ">", "less": "<", "not worse": "no worse than", "equal": "="}[claim.relation or "greater"]
        joint = f" {sign} " if claim.compare == "chain" else ", "
        head, *rest = (side.label for side in claim.sides)
        return joint.join([head, *rest]) if claim.compare == "chain" else f"{head} {sign} {joint.join(rest)}"
    if claim.range is not None:
        return f"within {claim.range[0]:g} to {claim.range[1]:g}"
    spread = {"sd": " ± {} (sd)", "se": " ± {} (s.e.)", "range": " (range {})", None: ""}[claim.spread_kind]
    return f"{claim.value}{spread.format(claim.spread)}{_unit(claim)}"


def ours(claim: Claim, verdict: Verdict) -> str:
    """Our number with one digit more than was printed, or the means of a trend's sides."""
    if claim.kind == "trend":
        return ", ".join(f"{s.label} {s.mean:.4g} (n = {s.runs})" for s in verdict.sides if s.mean is not None)
    if verdict.ours is None:
        return "none reached it" if verdict.sides else ""
    if claim.value is None:
        text = f"{verdict.ours:.3g}"
    elif claim.kind == "count":
        text = f"{verdict.ours:.6g}" if half_unit(claim.value) < 0.5 else f"{verdict.ours:.0f}"
    else:
        digits = (
            max(0, len(claim.value.partition(".")[2]) + 1) if "." in claim.value else (1 if verdict.ours < 1000 else 0)
        )
        text = f"{verdict.ours:.{digits}f}"
        if verdict.half_width is not None:
            text += f" ± {verdict.half_width:.{digits}f}"
    return text + _unit(claim)


def assumptions(claim: Claim) -> list[str]:
    """What the paper leaves unsaid and evidence shows not to move the number: shown, but no deviation."""
    return [
        f"{unsaid.what} Filled in: {unsaid.filled} Not counted as a deviation: {unsaid.evidence}"
        for unsaid in unsaid_of(claim)
        if not unsaid.moves_result
    ]


def _unit(claim: Claim) -> str:
    return f" {claim.unit}" if claim.unit else ""


def command(claim: Claim) -> str:
    """What a reader copies to rerun a row."""
    return f"repro claim {claim.id} --fresh" if claim.kind != "count" else f"repro audit {claim.paper}"


def runnable(claim: Claim) -> bool:
    """Whether every preset the claim needs exists."""
    known = presets(claim.paper)
    sides = claim.measured_by()
    return bool(sides) and all(side.preset == "audit" or side.preset in known for side in sides)


def row(claim: Claim, verdict: Verdict) -> dict[str, Any]:
    """The row as plain data, for programs."""
    return {
        "id": claim.id,
        "paper": claim.paper,
        "kind": claim.kind,
        "where": claim.where,
        "what": claim.what,
        "metric": claim.metric,
        "unit": claim.unit,
        "reported": reported(claim),
        "value": None if claim.value is None else float(claim.value),
        "ours": ours(claim, verdict),
        "mean": verdict.ours,
        "interval": verdict.interval,
        "half_width": verdict.half_width,
        "n": verdict.n,
        "seeds_asked": claim.seeds_asked,
        "seeds_needed": verdict.seeds_needed,
        "verdict": verdict.name,
        "would_be": verdict.would_be,
        "settled": verdict.settled,
        "deviations": list(verdict.deviations),
        "notes": list(verdict.notes),
        "assumptions": assumptions(claim),
        "seconds": round(verdict.seconds, 3),
        "presets": [side.preset for side in claim.measured_by()],
        "reach": claim.reach,
        "cpu_minutes": claim.cpu_minutes,
        "gpu_minutes": claim.gpu_minutes,
        "unverified": claim.unverified,
        "source": claim.source,
        "command": command(claim),
    }


def verdict_text(claim: Claim, verdict: Verdict) -> str:
    """The verdict with what belongs to it: seeds still needed, what a deviating trend would say."""
    if verdict.name == "too noisy":
        needed = f"{verdict.seeds_needed} seeds" if verdict.seeds_needed else "no number of seeds resolves it"
        return f"too noisy ({needed})"
    if verdict.name == "too few seeds":
        return f"too few seeds ({verdict.n} of {claim.seeds_asked})"
    if verdict.would_be:
        return f"deviates (would say {verdict.would_be})"
    return verdict.name


def duration(seconds: float) -> str:
    """12 s, 3.4 min, 2.1 h, 5.0 days."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.1f} days"


def verdict_kind(verdict: Verdict) -> str:
    """`off by +2` → `off`; other verdicts are their own kind."""
    return "off" if verdict.name.startswith("off by") else verdict.name


def counts(judged: Judged) -> dict[str, int]:
    """How many claims stand at which verdict, in the page's order."""
    found = Counter(verdict_kind(verdict) for _, verdict in judged)
    return {name: found[name] for name in ORDER if found[name]}


def metric_name(claim: Claim) -> str:
    """The claim's metric, or those of its sides."""
    return claim.metric or " / ".join(dict.fromkeys(side.metric for side in claim.sides))


@dataclass(frozen=True)
class Gap:
    """How far ours lies from what was reported, as a number without a unit.

    Attributes:
        gap: (ours - reported) / scale.
        scale: the reported spread as a standard deviation, where the paper prints one; else the smallest difference
            that would matter.
        basis: which of the two it is, in words.
    """

    gap: float
    scale: float
    basis: str


def gap(claim: Claim, verdict: Verdict) -> Gap | None:
    """The gap of a value; None where there is nothing to compare."""
    if claim.kind != "value" or claim.value is None or verdict.ours is None:
        return None
    scale, basis = claim.resolution, "smallest difference that would matter"
    if claim.spread is not None and claim.spread_kind in ("sd", "se") and float(claim.spread) > 0:
        scale = float(claim.spread) * (math.sqrt(claim.runs) if claim.spread_kind == "se" else 1)
        basis = "reported standard deviation"
    assert scale is not None
    return Gap((verdict.ours - float(claim.value)) / scale, scale, basis)


def changed_since(record: Record) -> list[str]:
    """How the preset a record was made by differs today from what it was then; empty where it does not."""
    if record.preset == "audit":
        return []
    preset = presets(record.paper).get(record.preset)
    if preset is None:
        return [f"{record.preset} is no longer there"]
    found = _differences(preset, record.config_text)
    return [f"{name}: was {then}, is {now}" for name, (now, then) in found.items() if name not in record.overrides]


@cache
def _differences(preset: Any, config: str) -> dict[str, tuple[Any, Any]]:
    """`config_differences` of a configuration as text: asked once for all its seeds."""
    return config_differences(preset, json.loads(config))


def drawn(claim: Claim, verdict: Verdict) -> list[tuple[str, str, list[Record]]]:
    """Curves worth drawing: for each side the claim's own metric where it was logged, else the first one logged."""
    found = []
    for side, measured in zip(claim.measured_by(), verdict.sides, strict=False):
        records = [record for record in measured.records if record.curves]
        if records:
            logged = records[0].curves
            curves = [name for name in logged if name != SEEN] or list(logged)
            metric = side.metric if side.metric in curves else curves[0]
            found.append((side.label, metric, [record for record in records if metric in record.curves]))
    return found


def axis_of(metric: str, records: Iterable[Record]) -> str:
    """What a metric's curve runs over."""
    return SEEN if metric != SEEN and all(SEEN in record.curves for record in records) else "step"
