"""One run: processes, seeds, folder, log, checkpoints and, at the end, its records.

A paper's `train(cfg, run)` uses `run.steps` as its loop and calls `run.finish` at the end. Whatever changes between
two steps is in the state handed to `run.steps`; whatever is random is a pure function of (seed, step), see
`common.random`. Then a resumed run equals an uninterrupted one bit for bit.
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from filelock import FileLock, Timeout

from common import checkpoint, claims, machine, records
from common.cli import Command, format_seeds, saved_run
from common.errors import NO_ROOM, STOPPED, UNWRITABLE, Stopped, UserError, no_room
from common.paths import RUNS
from common.progress import Progress

Mode = Literal["sharded", "stacked", "single"]


class _Signals:
    """SIGTERM and SIGUSR1 (SLURM's warning): noted while a loop runs, which stops at its next step; at other times
    there is nothing to save, and they end the process where it is."""

    def __init__(self) -> None:
        self.asked = ""
        self.in_loop = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        self.asked, self.in_loop = "", False
        with contextlib.suppress(ValueError):  # only a main thread hears signals
            for name in ("SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._hear)

    def leave(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _hear(self, number: int, frame: object) -> None:
        self.asked = self.asked or signal.Signals(number).name
        if not self.in_loop:
            raise Stopped(f"stopped by {self.asked} outside the training loop")


SIGNALS = _Signals()


class Run:
    """What a paper's script needs of its surroundings.

    Attributes:
        seeds: the seeds this process trains.
        device: where to compute.
        accelerator: accelerate's view of the processes.
        folder: the run's folder.
        data_dir: the local mirror of data sets, if any.

    Args:
        began: of a run that is resumed, its `machine.origin` when it began.
    """

    def __init__(
        self,
        command: Command,
        accelerator: Accelerator,
        mode: Mode,
        seeds: Sequence[int],
        folder: Path,
        began: Mapping[str, Any] | None = None,
    ) -> None:
        self.command, self.accelerator, self.mode, self.folder = command, accelerator, mode, folder
        self.all_seeds = list(seeds)
        rank, world = accelerator.process_index, accelerator.num_processes
        self.seeds = self.all_seeds[rank::world] if mode == "sharded" else self.all_seeds
        self.device: torch.device = accelerator.device
        self.data_dir = command.data_dir
        self.main = accelerator.is_main_process
        self._writes = self.main or mode == "sharded"  # of sharded seeds every process keeps its own
        suffix = f"-{rank}" if mode == "sharded" and rank else ""
        self._log_path = folder / f"log{suffix}.jsonl"
        self._checkpoints = folder / f"checkpoints{suffix}"
        self._data: dict[str, str] = {}
        self._pictures: dict[str, str] = {}
        self._state: Any = {}
        self._step = self._first_step = 0
        self._saved_step = -1
        self._seconds_before = 0.0
        self._begun = time.monotonic()
        self._started = datetime.now(UTC)
        self._origin, self._origin_before = machine.origin(command.paper), began
        self._progress: Progress | None = None
        self._wrapped = False
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    # ---- while it trains

    def read(self, name: str, fingerprint: str) -> None:
        """Note a data set that was really read, for the record.

        Raises:
            UserError: the paper's claims declare another one of that name, and `--other-data` was not given.
        """
        declared = {data.name: data.fingerprint for data in claims.load(self.command.paper).data}.get(name)
        generated = name.startswith("generated/")  # by a program: of another size where a field says so
        if declared and not generated and declared != fingerprint and not self.command.options.other_data:
            raise UserError(
                f"data set {name} is not the declared one (its fingerprint is {fingerprint[:19]}…, not "
                f"{declared[:19]}…); fetch it anew, or pass --other-data and the records will say so"
            )
        self._data[name] = fingerprint

    def timed(self) -> None:
        """Say that what follows is measured by the clock.

        Raises:
            UserError: `--deterministic` was given, which a time cannot honour.
        """
        if self.command.options.deterministic:
            raise UserError(f"--deterministic: {self.command.preset} measures time, which never repeats; leave it out")

    @property
    def part(self) -> tuple[int, int]:
        """(i, n): this process does the i-th part of n of what can be split, such as an evaluation."""
        if self.mode == "sharded":
            return 0, 1
        return self.accelerator.process_index, self.accelerator.num_processes

    def share(self, batch: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """This process's part of something every process holds whole; `dim` must divide by the processes.

        Raises:
            UserError: it does not divide.
        """
        rank, world = self.part
        if batch.shape[dim] % world:
            raise UserError(
                f"a batch of {batch.shape[dim]} does not divide among {world} processes; launch a divisor of it"
            )
        return batch.chunk(world, dim)[rank]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over the processes that share a batch."""
        if self.part[1] == 1:
            return value
        return self.accelerator.reduce(value, reduction="mean")

    def wrapped(self, model: torch.nn.Module) -> Any:
        """The model to train: its batch shared among the processes, compiled where `--compile` says so."""
        if self.mode == "sharded":
            return model
        self._wrapped = True
        model = self.accelerator.prepare_model(model)
        if self.command.options.compile:  # with CUDA graphs on a GPU
            return torch.compile(model, mode="reduce-overhead" if self.device.type == "cuda" else None, dynamic=False)
        return model

    def average_buffers(self, model: torch.nn.Module) -> None:
        """Give the running statistics of every process (batch normalisation) their mean over the processes."""
        if self.part[1] == 1:
            return
        running = [b for name, b in model.named_buffers() if name.rpartition(".")[2].startswith("running_")]
        if running:
            mean = self.mean(torch.cat([b.flatten() for b in running]))
            for buffer, part in zip(running, mean.split([b.numel() for b in running]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def steps(self, total: int, state: dict[str, Any], every: int | None = None) -> Iterator[int]:
        """Yield the steps still to do, showing progress and keeping checkpoints.

        Args:
            total: number of steps.
            state: everything that changes between steps; restored in place when the run is resumed.
            every: steps between checkpoints; by time (`--checkpoint-minutes`) if None.

        Raises:
            UserError: asked to compile or for another precision, and the model is not `wrapped`.
            Stopped: a signal asked for it; the state is saved.
        """
        if not self._wrapped and (self.command.options.compile or self.accelerator.mixed_precision != "no"):
            raise UserError(f"{self.command.paper} trains in its own way: leave out --compile and --precision")
        self._state = state
        start, self._seconds_before = checkpoint.load(self._checkpoints, state)
        if self.part[1] > 1:
            found = [step for (step,) in gather_object([(start,)])]
            if len(set(found)) > 1:
                raise UserError(f"the processes found checkpoints of steps {found}: {self.folder} must be one for all")
        self._step = self._first_step = self._saved_step = start
        if start and self._origin_before:
            origin = machine.origin(self.command.paper, self._origin_before)
            if origin != self._origin and self.main:
                print(f"{self.folder} began with other sources: its record will say so", file=sys.stderr)
            self._origin = origin
        self._truncate_log(start)
        self._progress = Progress(total, start, shown=self.main)
        self._begun = last = time.monotonic()
        SIGNALS.in_loop = True
        try:
            for step in range(start, total):
                yield step
                self._step = step + 1
                self._progress.update(self._step)
                now = time.monotonic()
                if self._step % every == 0 if every else now - last >= self.command.options.checkpoint_minutes * 60:
                    self._save()
                    last = now
                if self._asked_to_stop():
                    self._save()
                    if self.part[1] > 1:
                        self.accelerator.wait_for_everyone()  # the first to leave would have the others ended
                    raise Stopped(f"stopped by {SIGNALS.asked or 'a signal'} after step {step}, and saved")
            self._save()  # what follows may take long, and may change the state
        finally:
            SIGNALS.in_loop = False
            self._progress.close()

    def _asked_to_stop(self) -> bool:
        """Whether a process that shares the batch has been asked: all of them stop after the same step."""
        if self.part[1] == 1:
            return bool(SIGNALS.asked)
        asked = torch.tensor(float(bool(SIGNALS.asked)), device=self.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def log(self, step: int, **values: Any) -> None:
        """Append one line to the log: floats, or one value per seed. Learning curves are read from here."""
        line = {"step": step} | {name: _numbers(value) for name, value in values.items()}
        if self._writes:
            with open(self._log_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._progress is not None:
            self._progress.note("  ".join(f"{name} {_short(value)}" for name, value in line.items() if name != "step"))

    # ---- when it ends

    def picture(self, name: str, alt: str) -> Path:
        """Where to write a PNG that goes onto the page with the first seed's record; name it after the last step.

        Args:
            name: of letters, digits and dashes.
            alt: what there is to see, for those who do not see it.
        """
        self._pictures[name] = alt
        return self.folder / f"{name}.png"

    def finish(self, metrics: Sequence[Mapping[str, float]]) -> list[records.Record]:
        """End the run: keep the final state and write one record per seed.

        Args:
            metrics: final metrics, one mapping per seed of `self.seeds`.

        Returns:
            The records of all seeds, on the main process.
        """
        if len(metrics) != len(self.seeds):
            raise ValueError(f"{len(metrics)} metrics for {len(self.seeds)} seeds")
        self._save()
        return self._leave(metrics)

    def diverge(self, step: int, what: str) -> NoReturn:
        """End a run that numbers have spoilt: its records say so, and its state is not saved over the last good one.

        Args:
            step: the update that was not made. Its batch is a function of seed and step, so it can be drawn again.
            what: what went wrong.

        Raises:
            UserError: always.
        """
        preset = self.command.preset
        sides = [side for claim in claims.load(self.command.paper).claim for side in claim.measured_by()]
        lost = dict.fromkeys([side.metric for side in sides if preset in side.presets] or ["loss"], math.nan)
        self._leave([lost] * len(self.seeds))
        kept = f"{self._checkpoints} at step {self._saved_step}" if self._saved_step > 0 else "none yet"
        raise UserError(
            f"{what} at step {step}, in batch {step} of seed {format_seeds(self.seeds)}; the update was not made; "
            f"last checkpoint: {kept}; the record says diverged"
        )

    def _leave(self, metrics: Sequence[Mapping[str, float]]) -> list[records.Record]:
        """Write one record per seed of `self.seeds`, and say so."""
        seconds = self._seconds_before + time.monotonic() - self._begun
        curves = self._curves()
        mine: list[dict[str, Any]] = [
            {"seed": seed, "metrics": dict(m), "curves": {name: c[i] for name, c in curves.items()}}
            for i, (seed, m) in enumerate(zip(self.seeds, metrics, strict=True))
        ]
        memory = round(machine.peak_memory_mib(self.device), 1)
        rate = (self._step - self._first_step) / max(time.monotonic() - self._begun, 1e-9)
        shared = [{"seconds": seconds, "memory": memory, "rate": rate, "data": self._data}]
        if self.accelerator.num_processes > 1:
            if self.mode == "sharded":
                mine = gather_object(mine)
            shared = gather_object(shared)
        if not self.main:
            return []
        kept = self.folder / "records"
        made = [records.keep(record, kept, self.folder) for record in self._records(mine, shared)]
        if self.command.options.record:
            for record in made:
                records.accept(record, beside=kept)
        self._tell(made)
        return made

    def _records(
        self, seeds: Sequence[Mapping[str, Any]], shared: Sequence[Mapping[str, Any]]
    ) -> Iterator[records.Record]:
        """The records of all seeds; `shared` has what each process knows of the run as a whole."""
        command, config = self.command, claims.as_config(self.command.config)
        data = {name: fingerprint for part in shared for name, fingerprint in part["data"].items()}
        precision = self.accelerator.mixed_precision
        pictures = dict(self._shown())
        around = machine.circumstances(self.device) | {"peak_memory_mib": max(part["memory"] for part in shared)}
        found = {
            claim.id: claims.deviations(claim, side, config, data, precision, around["device"])
            for claim in claims.speaking_to(command.paper, command.preset, seeds[0]["metrics"])
            for side in claim.measured_by()
            if command.preset in side.presets
        }
        for one in sorted(seeds, key=lambda one: one["seed"]):
            metrics = {k: float(v) if math.isfinite(v) else None for k, v in one["metrics"].items()}
            last = [values[-1] for name, (_, values) in one["curves"].items() if "loss" in name]
            yield records.Record(
                paper=command.paper,
                preset=command.preset,
                overrides=command.overrides,
                config=config,
                seed=one["seed"],
                stacked=len(self.all_seeds),
                status="diverged" if None in (*metrics.values(), *last) else "finished",
                claims=list(found),
                deviations=found,
                metrics=metrics,
                curves=one["curves"],
                pictures=pictures if one["seed"] == self.seeds[0] else {},
                data=data,
                precision=precision,
                compiled=command.options.compile,
                processes=self.accelerator.num_processes,
                started=self._started.isoformat(timespec="seconds"),
                wall_seconds=round(max(part["seconds"] for part in shared), 3),
                steps_per_second=float(f"{shared[0]['rate']:.6g}") if shared[0]["rate"] else None,
                **self._origin,
                **around,
            )

    def _shown(self) -> Iterator[tuple[str, records.Picture]]:
        """The pictures that can go with a record."""
        for name, alt in self._pictures.items():
            content = (self.folder / f"{name}.png").read_bytes()
            if len(content) <= records.PICTURE_BYTES:
                yield name, records.Picture(alt=alt, sha256=hashlib.sha256(content).hexdigest())
            else:
                print(f"{name}.png has {len(content)} bytes: too many to go with the record", file=sys.stderr)

    def _tell(self, made: Sequence[records.Record]) -> None:
        """The end of a run in a few lines."""
        first = made[0]
        where = f"{first.processes} process{'es' if first.processes > 1 else ''} of {first.device}"
        print(f"{first.paper} {first.preset}: {len(made)} seed(s) in {first.wall_seconds:.1f} s, {where}")
        for name in first.metrics:
            values = [value for r in made if (value := r.metrics[name]) is not None]
            if values:
                mean = sum(values) / len(values)
                spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0
                print(f"  {name} {mean:.6g}" + (f" ± {spread:.3g} (sd, n = {len(values)})" if len(values) > 1 else ""))
        diverged = [r.seed for r in made if r.status == "diverged"]
        if diverged:
            print(f"  diverged: seeds {format_seeds(diverged)}")
        print(f"  {self.folder}", flush=True)

    # ---- the folder

    def _save(self) -> None:
        if self._writes and self._saved_step != self._step:
            seconds = self._seconds_before + time.monotonic() - self._begun
            checkpoint.save(self._checkpoints, self._step, self._state, seconds)
            self._saved_step = self._step

    def _log_lines(self) -> list[dict[str, Any]]:
        lines = []
        if self._log_path.exists():
            for text in self._log_path.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:  # a line torn by a kill is written again by the steps that follow
                    break
        return lines

    def _truncate_log(self, step: int) -> None:
        """Forget what was logged after the checkpoint: those steps will be done, and logged, again."""
        if self._writes and self._log_path.exists():
            kept = [line for line in self._log_lines() if line["step"] < step]
            records.write_atomically(self._log_path, "".join(json.dumps(line) + "\n" for line in kept))

    def _curves(self) -> dict[str, list[Any]]:
        """metric -> for each seed of this process its thinned curve."""
        names: dict[str, tuple[list[float], list[list[float | None]]]] = {}
        for line in self._log_lines() if self._writes else []:
            for name, value in line.items():
                if name != "step":
                    steps, rows = names.setdefault(name, ([], []))
                    steps.append(line["step"])
                    rows.append(value if isinstance(value, list) else [value] * len(self.seeds))
        return {
            name: [records.thin(steps, [row[i] for row in rows]) for i in range(len(self.seeds))]
            for name, (steps, rows) in names.items()
        }


def execute(command: Command, argv: Sequence[str], train: Callable[[Any, Run], None], mode: Mode) -> None:
    """Carry out a command: one run for seeds that train together, one after the other otherwise."""
    options = command.options
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here (`repro doctor` lists devices)")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":  # on CPUs accelerate would pass over it
        raise UserError("FSDP: the main process alone keeps checkpoints, and of whole weights; launch plain processes")
    # Gradients that fade over many steps end below 1e-38, where a core is many times slower: Mamba's step on induction
    # heads took 74 ms, and takes 43. Before the first parallel region, because threads inherit it.
    torch.set_flush_denormal(True)
    machine.keep_pages()
    long_wait = InitProcessGroupKwargs(timeout=timedelta(days=7))  # sharded seeds end at different times
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()  # also on a Mac: its GPU has no float64
    own_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)  # they are averaged: Run.average_buffers
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=options.precision, kwargs_handlers=[long_wait, own_buffers])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise UserError(
            f"{world} processes were launched but accelerate joined {accelerator.num_processes}; "
            "without a GPU set ACCELERATE_USE_CPU=true"
        )
    folder, lock = None, None
    try:
        SIGNALS.listen()
        if options.deterministic:
            _be_deterministic(command, accelerator)
        folder, lock = _folder(command, argv, accelerator)
        with _in_words(command, folder):
            began = saved_run(folder).get("origin") if options.resume else None
            groups = [command.seeds] if mode != "single" else [(seed,) for seed in command.seeds]
            for seeds in groups:
                part = folder if len(groups) == 1 else folder / f"seed-{seeds[0]}"
                complete = sorted((part / "records").glob("*.json"))
                if options.resume and len(complete) == len(seeds):
                    if accelerator.is_main_process:
                        for path in complete if options.record else []:
                            records.accept(records.read(path), beside=path.parent)
                        print(f"{part}: this run is complete, its records are in {part / 'records'}")
                    continue
                part.mkdir(parents=True, exist_ok=True)
                run = Run(command, accelerator, mode, seeds, part, began)
                if run.seeds:
                    train(command.config, run)
                else:
                    run.finish([])  # more processes than seeds
    except UserError:
        if accelerator.process_index:  # the main process says it; this one only where it alone fails
            time.sleep(3)
            os.environ["RANK"] = "0"
        raise
    except (KeyboardInterrupt, Stopped) as stop:
        if accelerator.is_main_process:
            said = str(stop) or "interrupted"
            print(f"\n{said}; go on with: python -m papers.{command.paper}.train --resume {folder}", file=sys.stderr)
        if isinstance(stop, Stopped) and accelerator.num_processes > 1:
            _exit(STOPPED)
        raise
    else:
        leave(accelerator)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_flush_denormal(False)
        SIGNALS.leave()
        if lock is not None:
            lock.release()


@contextlib.contextmanager
def _in_words(command: Command, folder: Path) -> Iterator[None]:
    """What the system will not write, and what torch refuses under `--deterministic`, becomes one line (UserError)."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        reason = no_room(folder) if error.errno in NO_ROOM else f"{error}"
        raise UserError(f"{folder} cannot be written: {reason}; mend that, then --resume it") from None
    except RuntimeError as error:
        if not command.options.deterministic or "deterministic" not in str(error):
            raise
        raise UserError(f"--deterministic: {str(error).split(', but ')[0]}; leave it out") from None


def _be_deterministic(command: Command, accelerator: Accelerator) -> None:
    """Have torch refuse what does not repeat bit for bit.

    Raises:
        UserError: this run cannot repeat.
    """
    if command.options.compile:
        raise UserError("--deterministic: a compiler may choose another kernel each time; leave out --compile")
    if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
        raise UserError("--deterministic: in which order several GPUs add up is not fixed; launch one process")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product on a GPU
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def leave(accelerator: Accelerator) -> None:
    """End training; does not return where there are several processes.

    Gloo's threads now and then abort a process while its interpreter shuts down ("terminate called without an active
    exception", pytorch#190489; seen in two or three of 70 launches here), so that a finished run looked failed: skip
    the shutdown.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:
        _exit(0)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _folder(command: Command, argv: Sequence[str], accelerator: Accelerator) -> tuple[Path, FileLock | None]:
    """The run's folder, made and locked by the main process and known to all.

    Raises:
        UserError: it cannot be written, holds another run, or a living process trains in it.
    """
    options = command.options
    if options.resume:
        saved = saved_run(Path(options.resume))
        if saved["processes"] != accelerator.num_processes:
            raise UserError(
                f"{options.resume} was started by {saved['processes']} process(es); resume it with as many "
                f"(now {accelerator.num_processes})"
            )
        before, here = saved.get("platform", {}), machine.platform_of(accelerator.device)
        other = "; ".join(f"{k} {before[k]} → {v}" for k, v in here.items() if before.get(k, v) != v)
        if other and options.deterministic:
            raise UserError(f"--deterministic: {options.resume} began elsewhere ({other}); start it anew")
        if other and accelerator.is_main_process:
            print(f"{options.resume} began elsewhere ({other}): it may end in other bits", file=sys.stderr)
    told: list[Any] = [None]
    lock = None
    if accelerator.is_main_process:
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        name = f"{command.preset}-s{format_seeds(command.seeds).replace(',', '+')[:40]}-{now}-{os.getpid()}"
        given = options.resume or options.output_dir
        folder = Path(given).resolve() if given else RUNS / command.paper / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", blocking=False)
            lock.acquire()
            if options.resume:
                told = [folder]
            elif (folder / "run.json").exists():
                told = [f"{folder} already holds a run; go on with --resume {folder}, or choose another --output-dir"]
            else:
                saved = {"paper": command.paper, "argv": list(argv), "processes": accelerator.num_processes}
                saved |= {"preset": command.preset, "seeds": format_seeds(command.seeds)}
                saved["config"] = claims.as_config(command.config)
                saved["platform"] = machine.platform_of(accelerator.device)
                saved["origin"] = machine.origin(command.paper)
                records.write_atomically(folder / "run.json", json.dumps(saved, indent=1) + "\n")
                told = [folder]
        except Timeout:
            told = [f"another process trains in {folder}; wait for it, or choose another --output-dir"]
        except OSError as error:
            told = [f"the run's folder cannot be written: {error}; choose another --output-dir"]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    if isinstance(told[0], str):
        raise UserError(told[0])
    return told[0], lock


def _numbers(value: Any) -> Any:
    """Floats, or lists of floats; non-finite ones as null, for JSON has no word for them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_numbers(v) for v in value]
    return float(value) if math.isfinite(value) else None


def _short(value: Any) -> str:
    """One number for the progress line: the mean over seeds."""
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
    return f"{sum(values) / len(values):.4g}" if values else "nan"
