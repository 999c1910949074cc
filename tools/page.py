"""The page people read: `index.html`, one file that opens from disk, offline, without a build step.

What the browser needs beyond the rows (values of seeds, learning curves, deviations) goes along as JSON; texts that
many claims share are stored once, and curves are thinned until they fit CURVE_BYTES.
"""

import base64
import json
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from common.claims import Claim, load
from common.paths import PAPERS, RECORDS
from common.records import Record
from tools import bench
from tools.costs import Open, open_claims
from tools.rows import (
    Judged,
    assumptions,
    axis_of,
    changed_since,
    command,
    counts,
    drawn,
    duration,
    gap,
    metric_name,
    ours,
    reported,
    verdict_kind,
    verdict_text,
)
from tools.verdicts import Measured, Verdict, half_unit

GROUPS = {
    "agrees": ["matched", "exact", "holds", "beaten"],
    "differs": ["short", "fails", "off"],
    "no verdict": ["deviates", "too few seeds", "too noisy", "undecided"],
    "not run": ["not run"],
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
EXPLAINED = {
    "agrees": "the same number or the same statement, obtained the paper's way (or better: beaten)",
    "differs": "obtained the paper's way, and the number is another one",
    "no verdict": "measured, but cut down, filled in where the paper is silent, or too few seeds to tell",
    "not run": "listed all the same, with what it would cost",
}
CURVES_SHOWN = 10  # seeds whose curves are drawn; of more every n-th, and the page says so
DOTS_SHOWN = 60  # seeds in a dot plot
CURVE_BYTES = 900_000
PICTURE_BYTES = 1_400_000  # of all pictures, encoded; those beyond are named with their file
OPEN_SHOWN = 80  # rows of the time-and-money view
USD_PER_GPU_HOUR, USD_PER_CPU_HOUR = 2.5, 0.1  # where the reader's own prices begin


def html(judged: dict[str, Judged], meaning: dict[str, str], folder: Path = RECORDS) -> str:
    """The whole page; `folder` has the records' pictures."""
    payload = Payload()
    everything = [pair for claims in judged.values() for pair in claims]
    pictures = _pictures(judged, folder)
    races = [_race(record) for record in bench.newest()]
    papers = [
        {
            "card": load(paper).paper,
            "counts": counts(claims),
            "groups": groups(counts(claims)),
            "rows": [_row(claim, verdict, payload) for claim, verdict in claims],
            "pictures": pictures.get(paper, []),
            "missed": _missed(paper),
            "data": load(paper).data,
            "speed": [race for race in races if race["of"] == paper],
        }
        for paper, claims in judged.items()
    ]
    following, unpriced = _next(judged)
    return (
        _templates()
        .get_template("index.html.j2")
        .render(
            papers=papers,
            total=len(everything),
            records=len({id(r) for _, v in everything for r in v.records}),
            counts=counts(everything),
            groups=groups(counts(everything)),
            kinds_of=GROUPS,
            kinds=[kind for kinds in GROUPS.values() for kind in kinds],
            group_of=GROUP_OF,
            explained=EXPLAINED,
            meaning=meaning,
            devices=payload.devices.texts,
            following=following,
            races=races,
            unpriced=unpriced,
            gpu_price=USD_PER_GPU_HOUR,
            cpu_price=USD_PER_CPU_HOUR,
            payload=payload.to_json(),
        )
        + "\n"
    )


def groups(found: dict[str, int]) -> dict[str, int]:
    """Counts by verdict, added up to the four things a reader asks for first."""
    total: Counter[str] = Counter()
    for name, count in found.items():
        total[GROUP_OF[name]] += count
    return {name: total[name] for name in GROUPS}


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    environment.filters["command"] = _command
    environment.filters["minutes"] = lambda minutes: duration(minutes * 60) if minutes else ""
    return environment


# ---- what the browser draws from


@dataclass
class Texts:
    """Texts stored once and named by their place."""

    texts: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        if text not in self.places:
            self.places[text] = len(self.texts)
            self.texts.append(text)
        return self.places[text]


@dataclass
class Payload:
    """What goes along as JSON."""

    claims: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: Texts = field(default_factory=Texts)
    devices: Texts = field(default_factory=Texts)
    curves: list[tuple[str, str, tuple[Record, ...]]] = field(default_factory=list)  # metric, axis, runs
    places: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)
    stale: dict[int, list[str]] = field(default_factory=dict)

    def changed(self, record: Record) -> list[str]:
        """`changed_since`, asked once of a record that speaks to many claims."""
        if id(record) not in self.stale:
            self.stale[id(record)] = changed_since(record)
        return self.stale[id(record)]

    def curve(self, metric: str, records: list[Record]) -> int | None:
        """The place of a metric's curves over these runs; None where none has two points."""
        key = metric, tuple(map(id, records))
        if key not in self.places:
            axis = axis_of(metric, records)
            if all(len(_points(record, metric, axis, 60)) < 2 for record in records):
                return None
            self.places[key] = len(self.curves)
            self.curves.append((metric, axis, tuple(records)))
        return self.places[key]

    def to_json(self) -> str:
        """The JSON, safe inside a script element."""
        points, shown = 60, CURVES_SHOWN
        while points > 6 and sum(_size(*one, points, shown) for one in self.curves) > CURVE_BYTES:
            points, shown = max(6, points * 4 // 5), max(3, shown * 4 // 5)
        curves = [_curve(*one, points, shown) for one in self.curves]
        data = {"claims": self.claims, "texts": self.texts.texts, "devices": self.devices.texts}
        return f'{_json(data)[:-1]},"points":{points},"curves":[{",".join(curves)}]}}'.replace("<", "\\u003c")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _points(record: Record, metric: str, axis: str, most: int) -> list[tuple[float, float]]:
    steps, values = record.curves[metric]
    pairs = zip(steps if axis == "step" else record.curves[axis][1], values, strict=True)
    found = [(x, y) for x, y in pairs if x is not None and y is not None]
    if len(found) > most:
        found = [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]
    return found


def _chosen(records: tuple[Record, ...], shown: int) -> tuple[Record, ...]:
    """Every n-th run, so that at most `shown` remain."""
    return records[:: -(-len(records) // shown)]


def _size(metric: str, axis: str, records: tuple[Record, ...], points: int, shown: int) -> int:
    """About how many bytes `_curve` gives: seven a number, steps counted once."""
    lengths = [min(points, len(record.curves[metric][0])) for record in _chosen(records, shown)]
    return 80 + 7 * (sum(lengths) + max(lengths))


def _curve(metric: str, axis: str, records: tuple[Record, ...], points: int, shown: int) -> str:
    """Curves as JSON, with four digits; where all runs logged at the same steps, these are given once."""
    found = [(record.seed, _points(record, metric, axis, points)) for record in _chosen(records, shown)]
    found = [(seed, curve) for seed, curve in found if len(curve) > 1]
    across = [[x for x, _ in curve] for _, curve in found]
    across = across[:1] if all(one == across[0] for one in across) else across
    seeds = [seed for seed, _ in found]
    head = _json({"metric": metric, "axis": axis, "runs": len(records), "seeds": seeds})
    drawn = _lists([[y for _, y in curve] for _, curve in found], 4)
    return f'{head[:-1]},"x":{_lists(across, 6)},"y":{drawn}}}'


def _lists(lists: list[list[float]], digits: int) -> str:
    """Lists of numbers as JSON, quicker than through `json`: there are a hundred thousand."""
    return "[" + ",".join("[" + ",".join([f"%.{digits}g"] * len(one)) % tuple(one) + "]" for one in lists) + "]"


def _digits(value: float, digits: int) -> float | int:
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


# ---- one claim


def _row(claim: Claim, verdict: Verdict, payload: Payload) -> dict[str, Any]:
    """A row as the template shows it; what is shown on opening it goes into the payload."""
    records = verdict.records
    payload.claims[claim.id] = _details(claim, verdict, payload)
    spread = gap(claim, verdict)
    return {
        "claim": claim,
        "reported": reported(claim),
        "ours": ours(claim, verdict),
        "n": verdict.n,
        "verdict": verdict_text(claim, verdict),
        "kind": verdict_kind(verdict),
        "cost": duration(verdict.seconds) if records else "",
        "seconds": round(verdict.seconds, 1),
        "gap": None if spread is None else _digits(spread.gap, 4),
        "devices": sorted({payload.devices.place(record.device) for record in records}),
        "stale": any(payload.changed(record) for record in records),
    }


def _details(claim: Claim, verdict: Verdict, payload: Payload) -> dict[str, Any]:
    records, place = verdict.records, payload.texts.place
    spread = gap(claim, verdict)
    curves = [(label, payload.curve(metric, runs)) for label, metric, runs in drawn(claim, verdict)]
    stale = Counter(line for record in records for line in payload.changed(record))
    notes = list(verdict.notes)
    notes += [f"the preset has changed since {count} of these runs: {line}" for line, count in stale.items()]
    pictured = {record.preset for record in records if record.pictures}
    details: dict[str, Any] = {
        "kind": claim.kind,
        "metric": metric_name(claim),
        "unit": claim.unit,
        "better": claim.better,
        "value": None if claim.value is None else float(claim.value),
        "half": None if claim.value is None else half_unit(claim.value),
        "range": claim.range,
        "runs": claim.runs if claim.runs > 1 else None,
        "asked": claim.seeds_asked,
        "resolution": claim.resolution,
        "reach": claim.reach,
        "minutes": [claim.cpu_minutes, claim.gpu_minutes] if claim.cpu_minutes or claim.gpu_minutes else None,
        "hardware": claim.hardware,
        "source": place(claim.source) if claim.source else None,
        "note": place(claim.note) if claim.note else None,
        "history": [f"{change.date}: {change.what} ({change.why})" for change in claim.history],
        "deviations": [place(line) for line in verdict.deviations],
        "assumptions": [place(line) for line in assumptions(claim)],
        "notes": notes,
        "command": None if command(claim) == f"repro claim {claim.id} --fresh" else command(claim),
        "presets": list(dict.fromkeys(side.preset for side in claim.measured_by())),
    }
    if records:
        details |= {
            "mean": None if verdict.ours is None else _digits(verdict.ours, 6),
            "interval": None if verdict.interval is None else [_digits(x, 6) for x in verdict.interval],
            "sides": [_side(side) for side in verdict.sides],
            "seconds": _digits(verdict.seconds, 4),
            "per": _digits(verdict.seconds / len(records), 4),
            "memory": round(max(record.peak_memory_mib for record in records)),
            "devices": sorted({payload.devices.place(record.device) for record in records}),
            "commits": sorted({record.commit[:10] for record in records}),
            "curves": [[label, at] for label, at in curves if at is not None],
            "pictured": sorted(pictured),
        }
        if spread is not None:
            details |= {"gap": _digits(spread.gap, 4), "basis": spread.basis}
    return {name: value for name, value in details.items() if value not in (None, [], "", ())}


def _side(side: Measured) -> dict[str, Any]:
    shown = side.values[:: -(-len(side.values) // DOTS_SHOWN) or 1]
    return {
        "label": side.label,
        "values": [_digits(value, 6) for value in shown],
        "n": len(side.values),
        "failed": side.failed,
        "mean": None if side.mean is None else _digits(side.mean, 6),
        "sd": None if side.sd is None else _digits(side.sd, 3),
    }


# ---- pictures, text, costs


def _pictures(judged: dict[str, Judged], folder: Path) -> dict[str, list[dict[str, str]]]:
    """Every picture once, of each preset those of the first run that left any; small ones first come in."""
    found: dict[tuple[str, str], Record] = {}
    for claims in judged.values():
        for _, verdict in claims:
            for record in verdict.records:
                if record.pictures:
                    found.setdefault((record.paper, record.preset), record)
    sized = []
    for record in found.values():
        for name in record.pictures:
            path = folder / record.paper / record.picture_file(name)
            sized.append((path.stat().st_size, path))
    room, embedded = PICTURE_BYTES, set()
    for size, path in sorted(sized):
        room -= size * 4 // 3
        if room >= 0:
            embedded.add(path)
    pictures: dict[str, list[dict[str, str]]] = {}
    for (paper, preset), record in found.items():
        for name, picture in record.pictures.items():
            path = folder / paper / record.picture_file(name)
            png = base64.b64encode(path.read_bytes()).decode() if path in embedded else ""
            pictures.setdefault(paper, []).append(
                {
                    "id": f"{paper}:{preset}",
                    "alt": picture.alt,
                    "caption": f"{preset}, seed {record.seed}: {picture.alt}",
                    "png": png,
                    "file": f"records/{paper}/{path.name}",
                }
            )
    return pictures


HEADING = re.compile(
    r"^## (?P<title>What (?:did not match|does not match|is left out)[^\n]*)\n(?P<body>.*?)(?=^## |\Z)", re.M | re.S
)


def _missed(paper: str) -> dict[str, str] | None:
    """The section of the paper's README on what did not work, as HTML."""
    readme = PAPERS / paper / "README.md"
    found = HEADING.search(readme.read_text(encoding="utf-8")) if readme.exists() else None
    if found is None:
        return None
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def link(href: str) -> str:
        local = not re.match(r"[a-z]+:|#", href)
        return posixpath.normpath(f"../papers/{paper}/{href}") if local else href

    tokens = markdown.parse(found["body"])
    for inline in tokens:
        for token in inline.children or []:
            if token.type == "link_open":
                token.attrSet("href", link(str(token.attrGet("href"))))
    return {"title": found["title"], "html": markdown.renderer.render(tokens, markdown.options, {})}


def _race(record: bench.SpeedRecord) -> dict[str, Any]:
    """A timed piece of work: the row of the table of speeds, and how it grows."""
    (row,) = bench.rows([record])
    growth = record.growth
    sizes = list(zip(growth.sizes, *bench.growth_text(growth), strict=True)) if growth else []
    return (
        row
        | {"of": record.paper, "case": record.case, "device": record.device, "grows": sizes}
        | {"size": growth.what if growth else ""}
    )


def _code(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = str(text).split("`")
    marked = [Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)]
    return Markup("").join(marked)


def _command(text: str) -> Markup:
    """A command whose flags do not break at their hyphens."""
    first, *flags = re.split(r" (?=--)", text)
    return Markup("<code>{}</code>").format(
        Markup(" ").join([first, *(Markup('<span class="flag">{}</span>').format(flag) for flag in flags)])
    )


def _next(judged: dict[str, Judged]) -> tuple[list[Open], int]:
    """The cheapest open claims, and how many more groups of claims there are."""
    items = open_claims(judged)
    priced = [item for item in items if item.cpu_minutes or item.gpu_minutes]
    return priced[:OPEN_SHOWN], len(items) - min(len(priced), OPEN_SHOWN)
