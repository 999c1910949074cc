"""Feed damaged and made-up input to everything that reads it: `python -m tests.fuzzing --inputs 1000000`.

Valid texts are cut, spliced, repeated and salted with what has broken parsers elsewhere. Whatever is read must be
accepted or refused (`UserError`); any other exception is printed with its input, and fails.
"""

import argparse
import contextlib
import inspect
import io
import json
import random
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from common import claims, cli, records
from common.errors import UserError
from tests.test_verdicts import record

SALT = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xae", b"NaN", b"-Infinity", b"1e999", b"9" * 5000,
    b"-1", b"null", b"true", b'"', b"'", b'"""', b"\\", b"[", b"]", b"{", b"}", b"[" * 3000, b'{"a":' * 3000, b"=",
    b"../" * 5, b"/etc/passwd", b"\n", b"\r", b",", b"%s%n", b"${HOME}", b"<script>", b"1979-05-27T07:32:00Z", b"0x1f",
)  # fmt: skip
CLAIMS = b"""[paper]
name = "toy"
title = "A title"
authors = ["A. Author"]
year = 2016
venue = "Here"
link = "https://example.org"
summary = "What it says."
[[data]]
name = "owner/set"
source = "Hub"
[[claim]]
id = "toy/table1/a"
kind = "value"
where = "Table 1"
what = "accuracy"
metric = "accuracy"
better = "higher"
value = "81.5"
resolution = 0.5
preset = "smoke"
[[claim]]
id = "toy/table1/b"
kind = "cost"
where = "Table 1"
what = "time"
metric = "seconds"
range = [0.5, 2.0]
"""
RUN = b'{"paper": "gcn", "argv": ["--preset", "smoke", "--seed", "0-1"], "processes": 1, "config": {"lr": 0.01}}'
WORDS = (
    "--preset", "smoke", "laptop", "--lr", "0.1", "--seed", "0-3", "1e400", "nan", "--resume", "--dry-run", "--device",
    "cpu", "--help", "--", "-", "--=", "--lr=", "=", "\x00", "\ud800", "--précis", "٣", "0-9" * 9, "--output-dir", "/",
    "--checkpoint-minutes", "inf", "--record", "true", "[]", "{", "--no-record", "--run.seed", "--config.lr", "@file",
)  # fmt: skip


def damaged(text: bytes, rng: random.Random) -> bytes:
    """A text with one to four wounds."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        salt, byte = rng.choice(SALT), bytes([rng.randrange(256)])
        text = rng.choice((
            text[:a],
            text[:a] + text[b:],
            text[:a] + salt + text[a:],
            text[:a] + salt + text[a + rng.randint(1, 9) :],
            text[:b] + text[a:],
            text[:a] + byte + text[a + 1 :],
        ))  # fmt: skip
        text = text[:200_000]
    return text


def parsers(folder: Path) -> dict[str, tuple[int, bytes, Callable[[bytes], object]]]:
    """Name -> (share of the inputs, in 1/1000; a valid text; reads one)."""
    whole = record(80.0, 3)
    file = folder / whole.file_name()
    text = whole.to_json().encode()
    claims.PAPERS = folder
    (folder / "toy").mkdir()

    def a_record(text: bytes) -> None:
        file.write_bytes(text)
        records.read(file)

    def a_record_with_its_hash(text: bytes) -> None:
        """Past the hash: what an author who computes it could write."""
        try:
            made = records.Record.model_validate_json(text)
        except ValueError:
            return
        file.write_text(made.to_json(), encoding="utf-8")
        records.read(file)

    def some_claims(text: bytes) -> None:
        (folder / "toy/claims.toml").write_bytes(text)
        claims.load.__wrapped__("toy")

    def a_run(text: bytes) -> None:
        (folder / "run.json").write_bytes(text)
        cli.saved_run(folder)

    return {
        "record": (300, text, a_record),
        "record with its hash": (100, text, a_record_with_its_hash),
        "claims": (285, CLAIMS, some_claims),
        "run.json": (200, RUN, a_run),
        "--seed": (100, b"0-3,7,10-12", lambda text: cli.parse_seeds(text.decode("utf-8", "surrogateescape"))),
    }


def readers(folder: Path) -> dict[str, tuple[int, Callable[[random.Random], object]]]:
    """Name -> (share of the inputs, in 1/1000; reads one made-up input)."""

    def wounded(valid: bytes, read: Callable[[bytes], object]) -> Callable[[random.Random], object]:
        return lambda rng: read(damaged(valid, rng))

    def a_command(rng: random.Random) -> None:
        words = [rng.choice(WORDS) for _ in range(rng.randint(0, 6))]
        if rng.random() < 0.3:
            words.append(damaged(b"--checkpoint-minutes=3", rng).decode("utf-8", "surrogateescape"))
        parsed(words)

    def a_resumed_command(rng: random.Random) -> None:
        (folder / "run.json").write_bytes(damaged(RUN, rng))
        parsed(["--resume", str(folder)])

    def parsed(words: list[str]) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                cli.parse("gcn", words)
        except SystemExit as stop:
            if stop.code:  # --help leaves with 0
                raise

    of_texts = {name: (share, wounded(valid, read)) for name, (share, valid, read) in parsers(folder).items()}
    return of_texts | {"command line": (10, a_command), "resumed command line": (5, a_resumed_command)}


def fuzz(inputs: int, seed: int) -> Counter[str]:
    """How many inputs of each kind were read; raises whatever is no `UserError`."""
    rng, done = random.Random(seed), Counter[str]()
    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder, before = Path(name), claims.PAPERS
        # the presets of a real paper, beside the made-up claims
        claims.presets("gcn")
        try:
            for kind, (share, read) in readers(folder).items():
                for _ in range(max(1, inputs * share // 1000)):
                    state = rng.getstate()
                    done[kind] += 1
                    try:
                        read(rng)
                    except UserError:
                        done["refused"] += 1
                    except BaseException as error:
                        kept = Path(tempfile.mkdtemp()) / "input"
                        shutil.copytree(folder, kept)
                        print(f"{kind}: {type(error).__name__}: {str(error)[:200]}; kept {kept}", file=sys.stderr)
                        rng.setstate(state)
                        raise
        finally:
            claims.PAPERS = before
    return done


def guided(inputs: int, seed: int) -> NoReturn:
    """Let atheris look for inputs that reach new lines of the parsers; does not return."""
    import atheris  # type: ignore[import-not-found]

    for module in (tomllib._parser, json.decoder, claims, records, cli):  # type: ignore[attr-defined]
        for function in list(vars(module).values()):
            if inspect.isfunction(function):
                atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "read"
        folder.mkdir()
        kinds = list(parsers(folder).values())
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        for i, (_, valid, _) in enumerate(kinds):
            (corpus / str(i)).write_bytes(bytes([i]) + valid)

        def one(text: bytes) -> None:
            if text:
                with contextlib.suppress(UserError):
                    kinds[text[0] % len(kinds)][2](text[1:])

        atheris.Setup([sys.argv[0], f"-runs={inputs}", f"-seed={seed}", "-max_len=20000", str(corpus)], one)
        atheris.Fuzz()
    raise AssertionError("atheris ends the process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="by coverage, of the parsers alone (pip install atheris)")
    arguments = parser.parse_args()
    if arguments.guided:
        guided(arguments.inputs, arguments.seed)
    for name, count in fuzz(arguments.inputs, arguments.seed).items():
        print(f"{name:24} {count:>9,}")


if __name__ == "__main__":
    main()
