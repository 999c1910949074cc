"""The command line every paper's script shares: a preset, any field over it, and the run's own options.

Light on purpose: `--help`, `--dry-run` and mistakes are answered before torch is imported.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from common.claims import as_config, deviations, load, nearest, presets
from common.errors import STOPPED, Stopped, UserError
from common.paths import RUNS, data_dir


@dataclass(frozen=True)
class Options:
    """How a run is carried out; none of this changes what is measured."""

    preset: str = "laptop"  # the named configuration to start from
    seed: str = "0"  # one seed, or several: 0-19 or 0,3,5-7
    resume: str | None = None  # a run's folder: go on from its newest intact checkpoint; auto: find it, else start anew
    data_dir: str | None = None  # local mirror of the data sets (default: $PAPERS_DATA, else the Hub)
    output_dir: str | None = None  # the run's own folder (default: runs/<paper>/<preset>-...)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where to compute
    precision: Literal["no", "bf16"] | None = None  # mixed precision (default: as accelerate launch says, else no)
    compile: bool = False  # torch.compile the network, on a GPU with CUDA graphs; moves results by rounding
    deterministic: bool = False  # repeat bit for bit on the same machine, or refuse
    other_data: bool = False  # go on where a data set is not the one its paper's claims declare (the run deviates)
    checkpoint_minutes: float = 2.0  # time between checkpoints
    record: bool = False  # put the records on the leaderboard when the run ends
    dry_run: bool = False  # print the configuration and its deviations from the claims, and stop


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    paper: str
    preset: str
    overrides: dict[str, Any]
    config: Any
    seeds: tuple[int, ...]
    options: Options

    @property
    def data_dir(self) -> Path | None:
        return data_dir(self.options.data_dir)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0-3,7` → (0, 1, 2, 3, 7).

    Raises:
        UserError: not a list of numbers and ranges.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"--seed {text!r} is not a list of seeds; write 7, 0-19 or 0,3,5-7")
        named = range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(seeds) + len(named) > 1_000_000:
            raise UserError(f"--seed {text!r} names more than a million seeds")
        seeds += named
    return tuple(dict.fromkeys(seeds))


def format_seeds(seeds: list[int] | tuple[int, ...]) -> str:
    """(0, 1, 2, 3, 7) → `0-3,7`."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _value_of(flag: str, argv: list[str]) -> str | None:
    """The value of `--flag value` or `--flag=value`, the last one counting."""
    found = None
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            found = argv[i + 1]
        elif word.startswith(flag + "="):
            found = word.split("=", 1)[1]
    return found


def parse(paper: str, argv: list[str]) -> Command:
    """Turn a command line into a configuration.

    Raises:
        UserError: unknown preset or field (naming the nearest), or a value of the wrong type.
    """
    import tyro

    known_presets = presets(paper)
    config_type = type(next(iter(known_presets.values())))
    fields = {f.name: f for f in dataclasses.fields(config_type)}
    options = {f.name for f in dataclasses.fields(Options)}

    flags = [word[2:].split("=", 1)[0].replace("-", "_") for word in argv if re.match(r"--[A-Za-z]", word)]
    for flag in flags:
        if flag not in fields and flag not in options | {"help", "no_record", "no_dry_run"}:
            flag = _flag(flag)
            raise UserError(
                f"unknown field {flag}{nearest(flag, map(_flag, [*fields, *options])) or ' (--help lists every field)'}"
            )

    resume = _value_of("--resume", argv)
    automatic = resume == "auto"
    if resume is not None and not automatic:
        changed = sorted(
            set(flags) & ({*fields} | {"preset", "seed", "output_dir", "precision", "compile", "deterministic"})
        )
        if changed:
            raise UserError(f"a resumed run keeps its configuration: leave out {_flag(changed[0])}, or start a new run")
        saved = saved_run(Path(resume))
        if saved["paper"] != paper:
            raise UserError(f"{resume} holds a run of {saved['paper']}, not of {paper}")
        argv = [*saved["argv"], *argv]
    preset = _value_of("--preset", argv) or Options.preset
    if preset not in known_presets:
        raise UserError(
            f"unknown preset {preset!r}{nearest(preset, known_presets)} (known: {', '.join(known_presets)})"
        )

    together = dataclasses.make_dataclass(
        "Together",
        [
            ("config", tyro.conf.OmitArgPrefixes[tyro.conf.FlagConversionOff[config_type]]),  # type: ignore[valid-type, misc]
            ("run", tyro.conf.OmitArgPrefixes[Options]),
        ],
    )
    default = together(known_presets[preset], Options(preset=preset))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(together, default=default, args=argv, prog=f"papers.{paper}.train")
    except SystemExit as stop:
        if stop.code:
            raise UserError(_first_sentence(said.getvalue())) from None
        raise
    chosen, base = as_config(parsed.config), as_config(known_presets[preset])
    overrides = {name: value for name, value in chosen.items() if value != base[name]}
    seeds = parse_seeds(parsed.run.seed)
    if automatic:
        found = _newest_run(paper, preset, chosen, seeds, parsed.run.output_dir)
        resume = str(found) if found else None
    run_options = dataclasses.replace(parsed.run, resume=resume, output_dir=resume or parsed.run.output_dir)
    return Command(paper, preset, overrides, parsed.config, seeds, run_options)


def _newest_run(
    paper: str, preset: str, config: dict[str, Any], seeds: tuple[int, ...], output_dir: str | None
) -> Path | None:
    """The run of the same paper, preset, configuration, seeds and processes with the newest intact checkpoint, if any.

    Only `output_dir` is looked at where it is given. Folders whose every checkpoint is damaged are passed over aloud.
    """
    from common.checkpoint import intact

    wanted: dict[str, Any] = {"paper": paper, "preset": preset, "config": config, "seeds": format_seeds(seeds)}
    wanted["processes"] = int(os.environ.get("WORLD_SIZE", "1"))
    found: list[tuple[float, Path]] = []
    for file in [Path(output_dir) / "run.json"] if output_dir else (RUNS / paper).glob("*/run.json"):
        try:
            saved = saved_run(file.parent)
        except UserError:
            continue
        if {name: saved.get(name) for name in wanted} == wanted:
            checkpoints = sorted(file.parent.glob("**/checkpoints*/step-*"), reverse=True)
            whole = [path for path in checkpoints if intact(path)]
            if whole or output_dir:
                found.append((max((path.stat().st_mtime for path in whole), default=0.0), file.parent))
            elif checkpoints and int(os.environ.get("RANK", "0")) == 0:
                print(f"{file.parent}: every checkpoint is damaged, passed over", file=sys.stderr)
    return max(found)[1] if found else None


def _first_sentence(box: str) -> str:
    """The message inside the box that tyro prints: what stands between its title and the next rule."""
    _title, *lines = box.splitlines() or [""]
    message: list[str] = []
    for line in (line.strip("│| ") for line in lines):
        if set(line) <= set("─-╰╯+ "):
            if message:
                break
        else:
            message.append(line)
    return " ".join(message) or "the command line was not understood (--help lists every field)"


def saved_run(folder: Path) -> dict[str, Any]:
    """What a run's folder says about it (`run.json`).

    Raises:
        UserError: there is no run in that folder.
    """
    try:
        saved = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        words, _ = saved["argv"], (saved["paper"], saved["processes"])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise TypeError
        if not all(isinstance(saved.get(name, {}), dict) for name in ("platform", "origin")):
            raise TypeError
    except FileNotFoundError:
        raise UserError(f"{folder}: no run there (run.json is missing); name the folder the run printed") from None
    except OSError as error:  # no permission, a file in place of a folder, a name too long
        raise UserError(f"{folder}: run.json cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{folder}: run.json is damaged, nothing can be made of this run") from None
    return saved


def describe(command: Command) -> str:
    """The resolved configuration, and its deviations from each claim it speaks to."""
    chosen = as_config(command.config)
    lines = [f"{command.paper} · preset {command.preset} · seeds {format_seeds(command.seeds)}"]
    for name, value in chosen.items():
        lines.append(f"  {name} = {value}{'   (changed)' if name in command.overrides else ''}")
    spoken = 0
    for claim in load(command.paper).claim:
        for side in claim.measured_by():
            if command.preset in side.presets:
                spoken += 1
                found = deviations(claim, side, chosen, {})
                lines.append(f"{claim.id}: " + ("no deviation" if not found else f"{len(found)} deviations"))
                lines += [f"  - {line}" for line in found]
                break
    if not spoken:
        lines.append("No claim is measured by this preset.")
    return "\n".join(lines)


def fail(message: str, code: int = 2) -> NoReturn:
    """One line on standard error, from the main process alone, and a non-zero exit."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"error: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)  # a value may hold several
    sys.exit(code)


def launch(paper: str, argv: list[str] | None = None) -> NoReturn:
    """The main program of `papers/<paper>/train.py`."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command = parse(paper, argv)
        if command.options.dry_run:
            if int(os.environ.get("RANK", "0")) == 0:
                print(describe(command))
            sys.exit(0)
        from common.run import execute

        module = importlib.import_module(f"papers.{paper}.train")
        execute(command, argv, module.train, module.SEEDS)
    except UserError as error:
        fail(str(error))
    except Stopped:
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    sys.exit(0)
