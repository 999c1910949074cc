"""What papers claim, as data: the schema of `papers/<name>/claims.toml`, and the deviations computed from it."""

import dataclasses
import difflib
import importlib
import tomllib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import UserError
from common.paths import PAPERS, paper_names


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paper(_Strict):
    """The paper's card."""

    name: str
    title: str
    authors: list[str]
    year: int
    venue: str
    link: str = Field(pattern=r"^https?://")
    summary: str
    task: str = Field(default="other", description="the Hub's name of the task, for model cards")


class Data(_Strict):
    """A data set that presets name; `fingerprint` is the hash of what the loader is expected to read.

    `stand_in` names a data set that may take its place where it cannot be reached; such runs deviate.
    """

    name: str
    source: str
    stand_in: str | None = None
    reach: Literal["open", "gated"] = "open"
    fingerprint: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")


class Unsaid(_Strict):
    """Something the paper leaves unsaid, and how it was filled in.

    It counts as a deviation of the claims it names unless evidence shows that the choice does not move the number.
    """

    claims: list[str]
    what: str
    filled: str
    moves_result: bool = True
    evidence: str = ""

    @model_validator(mode="after")
    def _evidence(self) -> Self:
        if not self.moves_result and not self.evidence:
            raise ValueError("moves_result = false needs evidence")
        return self


class Side(_Strict):
    """One side of a trend: the runs of a preset, seen through one metric."""

    label: str
    preset: str
    metric: str
    cut_down: list[str] = []

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets whose runs are shown on this side: the one it names, and cut-down ones, which deviate."""
        return (self.preset, *self.cut_down)


class Correction(_Strict):
    """A correction of a claim against the paper."""

    date: str
    what: str
    why: str


class Claim(_Strict):
    """One thing a paper states that a program can check. Reported numbers are strings: their digits matter."""

    id: str = Field(pattern=r"^[a-z0-9]+(/[A-Za-z0-9._+-]+){2,}$")
    kind: Literal["value", "count", "trend", "cost"]
    where: str
    what: str
    metric: str = ""
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    value: str | None = None
    runs: int = Field(default=1, ge=1)
    spread: str | None = None
    spread_kind: Literal["sd", "se", "range"] | None = None
    seeds: int | None = Field(default=None, ge=1)
    statistic: Literal["mean", "median", "best", "proportion"] = "mean"
    over: str | None = None
    resolution: float | None = Field(default=None, gt=0)
    preset: str | None = None
    cut_down: list[str] = []
    sides: list[Side] = []
    relation: Literal["greater", "less", "not worse", "equal"] | None = None
    compare: Literal["first", "chain"] = "first"
    margin: float | None = Field(default=None, gt=0)
    range: tuple[float, float] | None = None
    hardware: str | None = None
    reach: Literal["open", "gated"] = "open"
    cpu_minutes: float | None = Field(default=None, gt=0)
    gpu_minutes: float | None = Field(default=None, gt=0)
    source: str = ""
    unverified: bool = False
    note: str = ""
    history: list[Correction] = []

    @model_validator(mode="after")
    def _complete(self) -> Self:
        def need(**fields: object) -> None:
            missing = [name for name, value in fields.items() if value in (None, "", [])]
            if missing:
                raise ValueError(f"{self.id}: a {self.kind} claim needs {', '.join(missing)}")

        if self.kind == "value":
            need(metric=self.metric, value=self.value, better=self.better, resolution=self.resolution)
        elif self.kind == "count":
            need(metric=self.metric, value=self.value)
        elif self.kind == "trend":
            need(sides=self.sides, relation=self.relation)
            if len(self.sides) < 2:
                raise ValueError(f"{self.id}: a trend needs two sides")
            if self.relation in ("not worse", "equal"):
                need(margin=self.margin)
            if self.relation == "not worse":
                need(better=self.better)
        else:
            need(metric=self.metric)
            if (self.range is None) == (self.value is None):
                raise ValueError(f"{self.id}: a cost claim needs either range or value (with hardware)")
            if self.value is not None:
                need(hardware=self.hardware)
        if self.value is not None:
            float(self.value)
        if (self.spread is None) != (self.spread_kind is None):
            raise ValueError(f"{self.id}: spread and spread_kind belong together")
        return self

    @property
    def paper(self) -> str:
        return self.id.split("/")[0]

    @property
    def seeds_asked(self) -> int:
        """The paper's own number of runs where it gives one, else three; counts need one look."""
        if self.kind == "count":
            return 1
        return self.seeds or (self.runs if self.runs > 1 else 3)

    def measured_by(self) -> list[Side]:
        """What must run for this claim: one side, or the sides of a trend."""
        if self.kind == "count":
            return [Side(label="ours", preset="audit", metric=self.metric)]
        if self.sides:
            return list(self.sides)
        if self.preset is None:
            return []
        return [Side(label="ours", preset=self.preset, metric=self.metric, cut_down=self.cut_down)]


class PaperClaims(_Strict):
    """All of one paper's `claims.toml`."""

    paper: Paper
    data: list[Data] = []
    unsaid: list[Unsaid] = []
    claim: list[Claim]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: set[str] = set()
        for claim in self.claim:
            if claim.paper != self.paper.name:
                raise ValueError(f"{claim.id} does not belong to {self.paper.name}")
            if claim.id in seen:
                raise ValueError(f"{claim.id} is there twice")
            seen.add(claim.id)
        return self


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to an error: `; did you mean x?` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def load(paper: str) -> PaperClaims:
    """Read and validate one paper's claims.

    Raises:
        UserError: no such paper, or the file does not fit the schema.
    """
    file = PAPERS / paper / "claims.toml"
    if not file.is_file():
        raise UserError(f"unknown paper {paper!r}{nearest(paper, paper_names())} (`repro list` names all)")
    try:
        return PaperClaims.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, not the schema; numbers or nesting without end
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise UserError(f"papers/{paper}/claims.toml is not valid: {said}") from None


@cache
def presets(paper: str) -> dict[str, Any]:
    """The paper's named configurations (`papers/<name>/config.py`; stdlib only, so this is quick)."""
    return importlib.import_module(f"papers.{paper}.config").PRESETS


def find(claim_id: str) -> Claim:
    """One claim by its id; raises a UserError that names the nearest one."""
    paper = claim_id.split("/")[0]
    for claim in load(paper).claim:
        if claim.id == claim_id:
            return claim
    known = [c.id for c in load(paper).claim]
    raise UserError(f"unknown claim {claim_id!r}{nearest(claim_id, known)} (`repro list {paper}` names all)")


def plain(value: Any) -> Any:
    """A configuration value as JSON knows it (tuples become lists)."""
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def as_config(config: Any) -> dict[str, Any]:
    """A paper's frozen configuration as a plain dictionary."""
    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


@cache
def _of_preset(base: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset's values and its fields' defaults: asked once for every record of it."""
    return as_config(base), {f.name: plain(f.default) for f in dataclasses.fields(base)}


def config_differences(base: Any, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields in which a run's configuration differs from a preset's: name -> (preset's, run's).

    A field the run did not know yet counts as its default: new fields default to what the code did before.
    """
    expected_of, defaults = _of_preset(base)
    differences = {}
    for name, expected in expected_of.items():
        actual = config.get(name, defaults[name])
        if actual != expected:
            differences[name] = (expected, actual)
    for name in config.keys() - defaults.keys():
        differences[name] = ("(no such field)", config[name])
    return differences


def speaking_to(paper: str, preset: str, metrics: Iterable[str]) -> list[Claim]:
    """The claims a run of this preset with these metrics has something to say about."""
    metrics = set(metrics)
    return [
        claim
        for claim in load(paper).claim
        if any(preset in side.presets and side.metric in metrics for side in claim.measured_by())
    ]


def deviations(
    claim: Claim,
    side: Side,
    config: Mapping[str, Any],
    data: Mapping[str, str],
    precision: str = "no",
    device: str = "",
) -> list[str]:
    """The differences between a run and what the claim's preset asks for, each as one line.

    Args:
        config: the run's resolved configuration.
        data: what the run really read, name -> fingerprint.
        precision: accelerate's mixed precision ("no" is the precision the paper's script names).
        device: the run's device, compared with the hardware of a reported cost.
    """
    lines = []
    if side.preset != "audit":
        for name, (expected, actual) in config_differences(presets(claim.paper)[side.preset], config).items():
            lines.append(f"{name}: {expected} → {actual}")
    declared = {d.name: d.fingerprint for d in load(claim.paper).data}
    for name, fingerprint in data.items():
        if declared.get(name) is not None and declared[name] != fingerprint:
            lines.append(f"data: {name} is not the declared one (fingerprint {fingerprint[:19]}…)")
    if precision != "no":
        lines.append(f"precision: mixed {precision}")
    if claim.hardware and claim.hardware != device:
        lines.append(f"hardware: {claim.hardware} → {device}")
    for unsaid in unsaid_of(claim):
        if unsaid.moves_result:
            lines.append(f"unsaid: {unsaid.what} Filled in: {unsaid.filled}")
    return lines


def unsaid_of(claim: Claim) -> list[Unsaid]:
    """What the paper leaves unsaid about a claim."""
    return _unsaid_of(claim.paper, claim.id)


@cache
def _unsaid_of(paper: str, claim_id: str) -> list[Unsaid]:
    return [u for u in load(paper).unsaid if any(fnmatchcase(claim_id, pattern) for pattern in u.claims)]
