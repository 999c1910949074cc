"""The Markdown pages' plots: one PNG per paper and one for all.

A PNG's bytes depend on the versions that drew it, so each carries a fingerprint of what it shows: a plot is drawn
again, and counts as stale, when that has changed.
"""

import hashlib
import io
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.paths import LEADERBOARDS
from common.records import Record, write_atomically
from tools.page import GROUP_OF, GROUPS, groups
from tools.rows import Judged, axis_of, counts, drawn, gap, verdict_kind

DRAWING = 3  # grows when the same facts are to be drawn otherwise
FOLDER = LEADERBOARDS / "plots"
TAKEN = FOLDER / "page.png"  # of the page itself, by tests/browser.py
COLORS = {"agrees": "#2f9e57", "differs": "#d24a42", "no verdict": "#b9820f", "not run": "#cbd2da"}
CURVE, REPORTED, QUIET, GRID = "#0b57b0", "#a01d1d", "#56606d", "#dde2e8"
DRAWN = [bytes.fromhex(color[1:]) for color in ("#000000", CURVE, REPORTED, QUIET, GRID, *COLORS.values())]
SHADES = 26  # of each, from white
WIDTH, PANEL = 9.0, 2.3  # inches: of a figure, of a row of learning curves
VALUES, CURVES, SEEDS, POINTS = 24, 6, 5, 40  # at most so many rows, panels, curves in one, points of one


@dataclass(frozen=True)
class Shown:
    """What a paper's plot holds."""

    values: int
    curves: int


def shown(claims: Judged) -> Shown | None:
    """What there is to draw of a paper; None where there is nothing."""
    facts = _facts(claims)
    found = Shown(len(facts["values"]), len(facts["curves"]))
    return found if found.values or found.curves else None


def write(judged: dict[str, Judged]) -> list[Path]:
    """Draw the plots that are missing or stale, drop those of nothing; returns their paths."""
    changed = []
    for path, facts in _wanted(judged):
        if _fingerprint_in(path) != _fingerprint(facts):
            write_atomically(path, _overview(facts) if path.stem == "overview" else _paper(facts))
            changed.append(path)
    for path in _others(judged):
        path.unlink()
        changed.append(path)
    return changed


def stale(judged: dict[str, Judged]) -> list[Path]:
    """Plots that show something else than they should."""
    found = [path for path, facts in _wanted(judged) if _fingerprint_in(path) != _fingerprint(facts)]
    return found + _others(judged)


def _wanted(judged: dict[str, Judged]) -> Iterator[tuple[Path, dict[str, Any]]]:
    yield FOLDER / "overview.png", {paper: groups(counts(claims)) for paper, claims in judged.items()}
    for paper, claims in judged.items():
        if shown(claims):
            yield FOLDER / f"{paper}.png", _facts(claims)


def _others(judged: dict[str, Judged]) -> list[Path]:
    return sorted(set(FOLDER.glob("*.png")) - {TAKEN} - {path for path, _ in _wanted(judged)})


def _facts(claims: Judged) -> dict[str, Any]:
    """The numbers that are drawn: gaps of values with their intervals, and learning curves."""
    values: list[list[Any]] = []
    curves: list[list[Any]] = []
    seen = set()
    for claim, verdict in claims:
        spread = gap(claim, verdict)
        if spread is not None and verdict.ours is not None:
            sign = -1 if claim.better == "lower" else 1
            half = (verdict.half_width or 0.0) / spread.scale
            group = GROUP_OF[verdict_kind(verdict)]
            values.append([claim.id.partition("/")[2], _short(sign * spread.gap), _short(half), group])
        for label, metric, records in drawn(claim, verdict):
            key = metric, tuple(sorted({record.preset for record in records}))
            if len(curves) < CURVES and key not in seen:
                seen.add(key)
                lines = [line for record in _some(records) if len(line := _line(record, metric, records)) > 1]
                if lines:
                    title = claim.id.partition("/")[2] + ("" if label == "ours" else f"\n{label}")
                    target = float(claim.value) if claim.value and metric == claim.metric else None
                    curves.append([title, metric, axis_of(metric, records), len(records), target, lines])
    return {"values": values[:: -(-len(values) // VALUES) or 1], "of": len(values), "curves": curves}


def _some(records: list[Record]) -> list[Record]:
    return records[:: -(-len(records) // SEEDS)]


def _line(record: Record, metric: str, records: list[Record]) -> list[list[float]]:
    steps, values = record.curves[metric]
    axis = axis_of(metric, records)
    across = steps if axis == "step" else record.curves[axis][1]
    line = [[_short(x), _short(y)] for x, y in zip(across, values, strict=True) if x is not None and y is not None]
    return line[:: -(-len(line) // POINTS) or 1]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _fingerprint(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([DRAWING, facts], sort_keys=True).encode()).hexdigest()


def _fingerprint_in(path: Path) -> str | None:
    """The text `Facts` of a PNG; None where there is no such file or text."""
    if not path.exists():
        return None
    content, at = path.read_bytes(), 8
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if kind == b"tEXt" and content[at + 8 :].startswith(b"Facts\0"):
            return content[at + 14 : at + 8 + length].decode("latin-1")
        at += length + 12
    return None


# ---- drawing


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, facecolor="white")


def _place(figure: Any, width: float, height: float, left: float, right: float, top: float, bottom: float) -> None:
    """Margins around a figure's panels in inches: to have matplotlib find them takes as long as the drawing."""
    figure.subplots_adjust(left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height)


def _png(figure: Any, facts: dict[str, Any]) -> bytes:
    """The figure in the colours it is drawn with (a third of the size), with its fingerprint."""
    from PIL import Image, PngImagePlugin

    drawn_png, out, texts = io.BytesIO(), io.BytesIO(), PngImagePlugin.PngInfo()
    figure.savefig(drawn_png, format="png")
    texts.add_text("Facts", _fingerprint(facts))
    shades = Image.new("P", (1, 1))  # a palette by frequency would give a single dot the colour of another verdict
    steps = [i / SHADES for i in range(1, SHADES + 1)]
    mixed = {tuple(round(255 + (part - 255) * step) for part in color) for color in DRAWN for step in steps}
    apart = sorted(color for color in mixed if min(color) < 240)  # white stays white
    shades.putpalette([part for color in [(255, 255, 255), *apart] for part in color])
    image = Image.open(drawn_png).convert("RGB").quantize(palette=shades, dither=Image.Dither.NONE)
    image.save(out, format="PNG", optimize=True, pnginfo=texts)
    return out.getvalue()


def _overview(facts: dict[str, Any]) -> bytes:
    height = 0.9 + 0.27 * len(facts)
    figure = _figure(WIDTH, height)
    axes = figure.subplots()
    _place(figure, WIDTH, height, 1.0, 0.9, 0.35, 0.5)
    names = list(facts)[::-1]
    left = [0.0] * len(names)
    for group in GROUPS:
        wide = [100 * facts[name][group] / sum(facts[name].values()) for name in names]
        axes.barh(names, wide, left=left, color=COLORS[group], label=group, height=0.72)
        left = [a + b for a, b in zip(left, wide, strict=True)]
    for y, name in enumerate(names):
        axes.text(101, y, f"{sum(facts[name].values())} claims", va="center", fontsize=8, color=QUIET)
    axes.set(xlim=(0, 100), xlabel="% of a paper's claims")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="upper left", ncols=4, frameon=False)
    return _png(figure, facts)


def _paper(facts: dict[str, Any]) -> bytes:
    values, curves = facts["values"], facts["curves"]
    rows = math.ceil(len(curves) / 3)
    high = (0.9 + 0.24 * len(values)) if values else 0.0
    figure = _figure(WIDTH, high + PANEL * rows)
    parts = figure.subfigures(2, 1, height_ratios=[high, PANEL * rows]) if values and rows else [figure, figure]
    if values:
        _gaps(parts[0], values, facts["of"])
        longest = max(len(name) for name, *_ in values)
        _place(parts[0], WIDTH, high, 0.2 + 0.068 * longest, 0.2, 0.15, 0.55)
    if rows:
        panels = list(parts[1].subplots(rows, 3, squeeze=False).flat)
        parts[1].subplots_adjust(wspace=0.42, hspace=0.7)
        _place(parts[1], WIDTH, PANEL * rows, 0.65, 0.15, 0.45, 0.5)
        for axes, curve in zip(panels, curves, strict=False):
            _panel(axes, *curve)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
    return _png(figure, facts)


def _gaps(figure: Any, values: list[list[Any]], of: int) -> None:
    axes = figure.subplots()
    for y, (_, middle, half, group) in enumerate(values):
        axes.errorbar(middle, y, xerr=half or None, fmt="o", color=COLORS[group], ms=5, lw=1.4)
    axes.axvline(0, color=REPORTED, ls="--", lw=1)
    axes.set_yticks(range(len(values)), [name for name, *_ in values], fontsize=8)
    axes.set_ylim(len(values) - 0.5, -0.5)
    if max(abs(v) + h for _, v, h, _ in values) > 10:
        axes.set_xscale("symlog", linthresh=1)
    less = f" ({len(values)} of {of} values)" if len(values) < of else ""
    axes.set_xlabel(
        f"worse  ←  ours minus reported, in reported spreads or smallest differences that matter{less}  →  better",
        fontsize=8,
    )
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color=GRID, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _panel(
    axes: Any, title: str, metric: str, axis: str, runs: int, target: float | None, lines: list[list[list[float]]]
) -> None:
    for line in lines:
        axes.plot(*zip(*line, strict=True), color=CURVE, lw=0.9, alpha=0.7)
    if target is not None:
        axes.axhline(target, color=REPORTED, ls="--", lw=1)
    least, most = (f(y for line in lines for _, y in line) for f in (min, max))
    if least > 0 and most / least > 60:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(
        f"{axis}; {len(lines)} of {runs} seeds" if len(lines) < runs else f"{axis}; {runs} seeds", fontsize=7
    )
    axes.set_ylabel(metric, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="x", nbins=4)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
