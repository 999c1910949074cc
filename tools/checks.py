"""Records are checked, not trusted."""

import dataclasses
import hashlib
import json
from functools import cache
from pathlib import Path

from common.claims import load, plain, presets, speaking_to
from common.errors import UserError
from common.paths import RECORDS, ROOT, paper_names
from common.records import Record, files, read


def examine(folder: Path = RECORDS) -> tuple[list[str], dict[str, list[Record]]]:
    """What is wrong with the records below a folder, one line each; and those that can be read, by paper.

    `read` has the schema, the hash of the record (unchanged since it was written) and the hash of the configuration in
    its file's name. Here: the paper's folder, the claims it names and the metrics they read, one record for one seed of
    one configuration, and pictures. A preset that has changed since is no error: the page says so
    (`rows.changed_since`), and what differs is a deviation.
    """
    found: list[str] = []
    records: dict[str, list[Record]] = {paper: [] for paper in paper_names()}
    pictures: set[Path] = set()
    seeds: dict[tuple[str, ...], Path] = {}
    for path in files(folder):
        shown = _shown(path)
        try:
            record = read(path)
            records.setdefault(path.parent.name, []).append(record)
            if record.paper != path.parent.name:
                found.append(f"{shown}: belongs to {record.paper}")
            found += [f"{shown}: {line}" for line in _claims(record)]
            for name, picture in record.pictures.items():
                file = path.with_name(record.picture_file(name))
                if hashlib.sha256(file.read_bytes()).hexdigest() != picture.sha256:
                    found.append(f"{_shown(file)}: not the picture its record names")
                pictures.add(file)
            first = seeds.setdefault(_seed(record), path)
            if first != path:
                found.append(f"{shown}: seed {record.seed} of this configuration has a record already: {first.name}")
        except (UserError, OSError) as error:
            found.append(str(error))
    others = {path for path in folder.glob("*/*") if path.suffix != ".json"} - pictures
    return found + [f"{_shown(path)}: belongs to no record" for path in sorted(others)], records


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _claims(record: Record) -> list[str]:
    """Claims it names that are not there, or that read another preset or a metric it has not."""
    named, known = frozenset(record.claims), _known(record.paper)
    lines = [f"unknown claim {name}" for name in record.claims if name not in known]
    read_by = _read_by(record.paper, record.preset, frozenset(record.metrics))
    for name in record.claims:
        if name in known - read_by:
            lines.append(f"names {name}, which reads another preset, or a metric that is not in the record")
    if record.deviations.keys() != named:
        lines.append("its deviations are of other claims than it names")
    return lines


@cache
def _known(paper: str) -> frozenset[str]:
    return frozenset(claim.id for claim in load(paper).claim)


@cache
def _read_by(paper: str, preset: str, metrics: frozenset[str]) -> frozenset[str]:
    return frozenset(claim.id for claim in speaking_to(paper, preset, metrics))


def _seed(record: Record) -> tuple[str, ...]:
    """What only one record may have: a seed of a configuration, fields younger than the record at their default."""
    return record.paper, record.preset, str(record.seed), _completed(record.paper, record.preset, record.config_text)


@cache
def _completed(paper: str, preset: str, config: str) -> str:
    known, given = presets(paper).get(preset), json.loads(config)
    younger = {} if known is None else {f.name: plain(f.default) for f in dataclasses.fields(known)}
    return json.dumps(
        {name: given.get(name, value) for name, value in younger.items()} | given, sort_keys=True, default=repr
    )
