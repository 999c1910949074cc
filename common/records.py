"""Records: the immutable file a run leaves, one per seed."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import UserError
from common.paths import RECORDS, RUNS

CURVE_POINTS = 60
PICTURE_BYTES = 200_000  # of one picture; the page holds them all


class Picture(BaseModel):
    """A PNG that lies beside a record, as `<the record's name>.<the picture's>.png`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alt: str = Field(min_length=1, description="what there is to see, for those who do not see it")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Record(BaseModel):
    """What one run with one seed measured, and under which circumstances."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    paper: str = Field(pattern=r"^[a-z0-9]+$")
    preset: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    overrides: dict[str, Any] = Field(description="fields given on the command line, on top of the preset")
    config: dict[str, Any] = Field(description="the full resolved configuration")
    seed: int
    stacked: int = Field(ge=1, description="how many seeds shared the run's time; each has a record of its own")
    status: Literal["finished", "diverged"]
    claims: list[str] = Field(description="ids of the claims it speaks to")
    deviations: dict[str, list[str]] = Field(description="claim id -> deviations, as computed when the run ended")
    metrics: dict[str, float | None] = Field(description="final metrics; null where it came out non-finite")
    curves: dict[str, list[list[float | None]]] = Field(description="metric -> [[step, ...], [value, ...]], thinned")
    pictures: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")], Picture] = Field(
        default_factory=dict, description="name -> a picture that lies beside the record"
    )
    data: dict[str, str] = Field(description="data set -> fingerprint of what was really read")
    commit: str
    dirty: bool | None = Field(description="whether the sources this run used differed from the commit")
    versions: dict[str, str]
    device: str
    precision: str = Field(description="accelerate's mixed precision")
    compiled: bool = Field(default=False, description="whether torch.compile was used")
    processes: int = Field(ge=1)
    threads: int = Field(ge=1)
    started: str = Field(description="UTC, ISO 8601")
    wall_seconds: float = Field(ge=0, description="of the whole run, all stacked seeds together")
    steps_per_second: float | None
    peak_memory_mib: float
    hash: str = Field(default="", description="SHA-256 of the record without this field")

    @property
    def seconds_per_seed(self) -> float:
        return self.wall_seconds / self.stacked

    @cached_property
    def config_text(self) -> str:
        """The configuration as JSON in a fixed order: equal where the configurations are."""
        return json.dumps(self.config, sort_keys=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, whose configuration may be another one."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("config_text", None)
        return copied

    def file_name(self) -> str:
        """`<preset>-<hash of the configuration>-s<seed>.json`: one seed of one configuration has one record."""
        config = hashlib.sha256(self.config_text.encode()).hexdigest()[:8]
        return f"{self.preset}-{config}-s{self.seed}.json"

    def picture_file(self, name: str) -> str:
        """The file of one of its pictures."""
        return f"{self.file_name().removesuffix('.json')}.{name}.png"

    def to_json(self) -> str:
        """One top-level field a line: readable in a diff, and compact."""
        fields = self.model_dump(mode="json") | {"hash": self.digest()}
        return (
            "{\n"
            + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items())
            + "\n}\n"
        )

    def digest(self) -> str:
        return _sha256(_canonical(self.model_dump(mode="json")))


def _canonical(fields: dict[str, Any]) -> str:
    """What the hash is taken of. Fields newer than the first records are left out where they are empty."""
    newer = {name for name in ("compiled", "pictures") if not fields.get(name)}
    kept = {name: value for name, value in fields.items() if name != "hash" and name not in newer}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(content: str) -> dict[str, str]:
    """Field -> JSON of a record's file, laid out as `to_json` does it, each value as the hash is taken of it.

    Numbers stay as they stand and what many records share is sorted once: a tenth of the time of doing it anew. Of a
    file laid out otherwise it gives something else.
    """
    fields = {}
    for line in content[2:-3].split(",\n"):
        name, _, value = line.partition(": ")
        if name == '"curves"' and value != "{}":
            value = "{" + ", ".join(sorted(f"{curve}]]" for curve in value[1:-3].split("]], "))) + "}"
        elif name == '"metrics"':
            value = "{" + ", ".join(sorted(value[1:-1].split(", "))) + "}"
        elif value.startswith('{"'):
            value = _sorted(value)
        fields[name] = value
    return fields


def _digest_of(fields: dict[str, str]) -> str:
    """`Record.digest` from `_lines`."""
    newer = [name for name, empty in (('"compiled"', "false"), ('"pictures"', "{}")) if fields.get(name) == empty]
    names = sorted(fields.keys() - {'"hash"', *newer})
    return _sha256("{" + ", ".join([f"{name}: {fields[name]}" for name in names]) + "}")


@lru_cache(4096)
def _sorted(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one, the new one, or none, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def alone(what: str) -> FileLock:
    """A lock for one process at a time to do it, in this checkout; freed when the process ends, however it ends."""
    RUNS.mkdir(parents=True, exist_ok=True)
    return FileLock(RUNS / f".{what}.lock")


def read(path: Path) -> Record:
    """Read and check one record.

    Raises:
        UserError: not a record, or changed since it was written.
    """
    try:
        content = path.read_bytes()
        record = Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not a valid record ({where + ': ' if where else ''}{first['msg']})") from None
    try:
        fields = _lines(content.decode())
    except ValueError:  # laid out otherwise
        fields = {}
    if record.hash == _digest_of(fields):
        if fields['"config"'].isascii():
            vars(record)["config_text"] = fields['"config"']  # saves printing it once more
    elif record.hash != record.digest():
        raise UserError(f"{path}: changed since it was written (its hash differs); restore it from version control")
    if path.name != record.file_name():
        raise UserError(f"{path}: should be named {record.file_name()}")
    return record


def keep(record: Record, folder: Path, pictures: Path) -> Record:
    """Write a record and its pictures into a run's folder of records; one that a killed run had written stays.

    Args:
        pictures: where they lie, under their bare names.
    """
    path = folder / record.file_name()
    if path.exists():
        return read(path)
    for name in record.pictures:
        write_atomically(folder / record.picture_file(name), (pictures / f"{name}.png").read_bytes())
    write_atomically(path, record.to_json())
    return record


def accept(record: Record, folder: Path = RECORDS, beside: Path | None = None) -> Path:
    """Put a record on the leaderboard. Records are immutable: an existing one is never replaced.

    Args:
        beside: the run's folder of records, where its pictures lie.

    Raises:
        UserError: the seed has another record already.
    """
    path = folder / record.paper / record.file_name()
    with alone("accept"):
        if path.exists():
            if read(path).digest() == record.digest():
                return path
            raise UserError(f"{path.name} exists already: records are immutable, and one seed has one record")
        for name in record.pictures if beside else ():
            file = record.picture_file(name)
            write_atomically(path.parent / file, (beside / file).read_bytes())  # type: ignore[operator]
        write_atomically(path, record.to_json())
    return path


def load_all(paper: str | None = None, folder: Path = RECORDS) -> Iterator[Record]:
    """All records below a folder, in the order of `files`."""
    for path in files(folder, paper):
        yield read(path)


def files(folder: Path = RECORDS, paper: str | None = None) -> list[Path]:
    """The files of records below a folder: by paper and configuration, then by seed."""

    def order(path: Path) -> tuple[str | int, ...]:
        stem, seed = re.fullmatch(r"(.*?)(\d*)\.json", path.name).groups()  # type: ignore[union-attr]
        return path.parent.name, stem, int(seed or 0)

    return sorted(folder.glob(f"{paper or '*'}/*.json"), key=order)


def thin(steps: list[float], values: list[float | None]) -> list[list[float | None]]:
    """At most CURVE_POINTS points of a curve, first and last among them, with six significant digits."""
    n = len(steps)
    if n > CURVE_POINTS:
        keep = sorted({round(i * (n - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
        steps, values = [steps[i] for i in keep], [values[i] for i in keep]
    return [list(steps), [None if v is None else float(f"{v:.6g}") for v in values]]
