"""The leaderboard for programs: JSON with a schema, CSV, and model cards whose `model-index` the Hub reads."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.claims import Claim, PaperClaims, load, presets
from tools.rows import Judged, counts, ours, reported, row, verdict_text


class Row(BaseModel):
    """One claim, what was measured, and the verdict."""

    model_config = ConfigDict(extra="forbid")

    id: str
    paper: str
    kind: Literal["value", "count", "trend", "cost"]
    where: str = Field(description="place in the paper")
    what: str
    metric: str
    unit: str
    reported: str = Field(description="the value as printed, or the trend in words")
    value: float | None = Field(description="the reported value as a number")
    ours: str = Field(description="what was measured, as the page shows it")
    mean: float | None = Field(description="our mean, or the statistic the paper gives")
    interval: tuple[float, float] | None = Field(
        description="95 % interval of what the authors would have printed had they drawn from our runs; of a trend, "
        "of the difference that decides it"
    )
    half_width: float | None = Field(description="the smallest difference this row can see")
    n: int = Field(description="seeds run")
    seeds_asked: int
    seeds_needed: int | None
    verdict: str
    would_be: str = Field(description="what a deviating trend would say")
    settled: bool
    deviations: list[str]
    notes: list[str]
    assumptions: list[str] = Field(description="left unsaid by the paper, and shown not to move the number")
    seconds: float = Field(description="of all runs together")
    presets: list[str]
    reach: Literal["open", "gated"]
    cpu_minutes: float | None = Field(description="estimate for all seeds asked on two CPU cores")
    gpu_minutes: float | None = Field(description="estimate for all seeds asked on one GPU")
    unverified: bool
    source: str = Field(description="where the reported value comes from, if not from the paper itself")
    command: str


class PaperSummary(BaseModel):
    """One paper and how many of its claims stand where."""

    model_config = ConfigDict(extra="forbid")

    name: str
    title: str
    authors: list[str]
    year: int
    venue: str
    link: str
    summary: str
    counts: dict[str, int] = Field(description="verdict -> claims")


class Results(BaseModel):
    """Every claim of every paper."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    papers: list[PaperSummary]
    claims: list[Row]


def results_json(judged: dict[str, Judged]) -> str:
    """`results.json`: one paper or claim a line."""
    papers, claims = [], []
    for paper, found in judged.items():
        card = load(paper).paper.model_dump(exclude={"task"})
        papers.append(PaperSummary(**card, counts=counts(found)).model_dump_json())
        claims += [Row(**row(claim, verdict)).model_dump_json() for claim, verdict in found]
    parts = (",\n".join(papers), ",\n".join(claims))
    return '{{\n"schema_version": 1,\n"papers": [\n{}\n],\n"claims": [\n{}\n]\n}}\n'.format(*parts)


COLUMNS = ["id", "paper", "kind", "where", "what", "metric", "unit", "reported", "value", "ours", "mean", "low", "high"]
COLUMNS += ["n", "seeds_asked", "verdict", "settled", "deviations", "seconds", "reach", "command"]


def results_csv(judged: dict[str, Judged]) -> str:
    """`results.csv`: one claim a line; deviations are joined by ` | `."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for claims in judged.values():
        for claim, verdict in claims:
            low, high = verdict.interval or (None, None)
            joined = " | ".join(verdict.deviations)
            writer.writerow(row(claim, verdict) | {"low": low, "high": high, "deviations": joined})
    return out.getvalue()


# ---- model cards


def card(
    facts: PaperClaims,
    claims: Judged,
    weights: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    preset: str = "",
) -> str:
    """A model card: what was measured as `model-index`, and the same for people.

    Args:
        weights: lines on the weights that lie beside the card, if any do.
        metrics: what their run measured, claimed or not.
        preset: of that run.
    """
    ran = [(claim, verdict) for claim, verdict in claims if verdict.records and claim.kind != "count"]
    lines = [
        f"# {facts.paper.title}",
        "",
        f"{', '.join(facts.paper.authors)}. {facts.paper.venue} {facts.paper.year}. <{facts.paper.link}>",
        "",
        facts.paper.summary,
        "",
        *(weights or ["An independent reproduction; no weights are here."]),
        "",
        "Each verdict is computed from the records of all seeds that ran. `deviates`: obtained in another way than the",
        "paper's, so not comparable as it stands.",
        "",
    ]
    if ran:
        lines += ["| claim | reported | ours (± 95 %) | n | verdict |", "|---|---|---|---:|---|"]
        for claim, verdict in ran:
            cells = [
                f"`{claim.id}`",
                reported(claim),
                ours(claim, verdict),
                str(verdict.n),
                verdict_text(claim, verdict),
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    else:
        lines.append("No claim was measured.")
    entries = [
        entry(claim, claim.preset or "", verdict.ours, verdict_text(claim, verdict))
        for claim, verdict in ran
        if verdict.ours is not None
    ]
    if metrics:
        lines += ["", "| metric | mean over the seeds |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in metrics.items()]
        entries += [_entry(facts, preset, name, name, value) for name, value in metrics.items()]
    return front_matter(facts, entries, "pytorch" if weights else None) + "\n".join(lines) + "\n"


def entry(claim: Claim, preset: str, value: float, remark: str) -> dict[str, Any]:
    """One measured value as the Hub's `model-index` wants it."""
    return _entry(load(claim.paper), preset, claim.metric, f"{claim.where}: {claim.what} ({remark})", value)


def _entry(facts: PaperClaims, preset: str, metric: str, name: str, value: float) -> dict[str, Any]:
    dataset = str(getattr(presets(facts.paper.name).get(preset), "dataset", "") or "generated by the program")
    return {
        "task": facts.paper.task,
        "dataset": dataset,
        "type": metric,
        "name": name,
        "value": float(f"{value:.6g}"),
    }


def front_matter(facts: PaperClaims, entries: list[dict[str, Any]], library: str | None = None) -> str:
    """The YAML block of a card, made by the library that reads it on the Hub."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=one["task"],
            dataset_type=one["dataset"],
            dataset_name=one["dataset"],
            metric_type=one["type"],
            metric_name=one["name"],
            metric_value=one["value"],
        )
        for one in entries
    ]
    arxiv = facts.paper.link.rpartition("/abs/")[2] if "arxiv.org/abs/" in facts.paper.link else ""
    data = ModelCardData(
        license="mit",
        library_name=library,
        tags=["reproduction", facts.paper.name, *([f"arxiv:{arxiv}"] if arxiv else [])],
        pipeline_tag=None if facts.paper.task == "other" else facts.paper.task,
        model_name=f"{facts.paper.name}-reproduced" if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"
