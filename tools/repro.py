"""`repro`: list claims, measure them, audit counts, render the leaderboard, say what to do next.

Heavy imports wait until a command needs them: `repro --help` answers at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from common.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    arguments = _parser().parse_args(argv)
    try:
        sys.exit(arguments.run(arguments))
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        print(f"error: {message} ({self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="repro", description="Reported against reproduced: claims, runs, records, verdicts.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print JSON for programs")
        command.set_defaults(run=run)
        return command

    def positive(text: str) -> int:
        if not text.isdigit() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
        return int(text)

    def port(text: str) -> int:
        if not text.isdigit() or int(text) > 65535:
            raise argparse.ArgumentTypeError(f"{text!r} is not a port")
        return int(text)

    listing = add("list", _list, "papers, their presets, and their claims with reach and verdict")
    listing.add_argument("paper", nargs="*", help="only these papers")

    claim = add("claim", _claim, "run a claim's preset for the seeds still missing, record them, and give the verdict")
    claim.add_argument("id", nargs="+", help="claim ids, e.g. lstm/table9/6a")
    claim.add_argument("--seeds", type=positive, help="number of seeds (default: as many as the claim asks)")
    claim.add_argument("--fresh", action="store_true", help="run all seeds anew and judge by these runs alone")
    claim.add_argument("--verify", action="store_true", help="repeat a run recorded on this platform: same bits?")
    claim.add_argument("--cut-down", action="store_true", help="run the claim's cut-down presets (they deviate)")
    claim.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the presets (so they deviate)",
    )
    claim.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")
    claim.add_argument("--data-dir", help="local mirror of the data sets (default: $PAPERS_DATA, else the Hub)")

    board = add("board", _board, "render the leaderboard from claims and records")
    way = board.add_mutually_exclusive_group()
    way.add_argument(
        "--check", action="store_true", help="write nothing; fail where a page is stale or a record invalid"
    )
    way.add_argument("--serve", action="store_true", help="render, then open the page in a browser until Ctrl-C")
    board.add_argument("--port", type=port, help="with --serve: the port to listen on (default: any free one)")

    card = add("card", _card, "a finished run's weights (safetensors) and model card, ready to push to the Hub")
    card.add_argument("paper", help="the paper whose run it is")
    card.add_argument("--run", required=True, dest="run_folder", help="the run's folder")
    card.add_argument("--to", help="where to write (default: `card` in the run's folder)")

    audit = add("audit", _audit, "the counts at the paper's own scale: parameters, shapes, FLOPs")
    audit.add_argument("paper", nargs="*", help="only these papers")
    audit.add_argument("--data-dir", help="local mirror of the data sets (default: $PAPERS_DATA, else the Hub)")
    audit.add_argument("--record", action="store_true", help="put the counts on the leaderboard")

    following = add("next", _next, "open claims by what is cheapest to settle, with the command for each")
    following.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="price them on this device")
    following.add_argument("--minutes", type=float, help="only what fits in so many minutes")
    following.add_argument("--data-dir", help="local mirror of the data sets (default: $PAPERS_DATA, else the Hub)")

    bench = add("bench", _bench, "time our step, and with --peers race it against what people would use instead")
    bench.add_argument("paper", nargs="*", help="only these papers")
    bench.add_argument("--case", action="append", default=[], help="only this piece of a paper's work")
    bench.add_argument("--peers", action="store_true", help="race the peers that are installed (extra `peers`)")
    bench.add_argument("--peer-dir", help="folder with checkouts of peers in no package (default: $PAPERS_PEERS)")
    bench.add_argument("--growth", action="store_true", help="also: how our step grows with the paper's sizes")
    bench.add_argument("--turns", type=positive, default=9, help="turns each contender takes (default: 9)")
    bench.add_argument("--threads", type=positive, default=1, help="of torch (default: 1)")
    bench.add_argument("--record", action="store_true", help="put the result on the leaderboard")
    bench.add_argument("--render", action="store_true", help="measure nothing; write leaderboards/speed/README.md anew")

    doctor = add("doctor", _doctor, "versions, devices, data sets within reach, and what each missing one blocks")
    doctor.add_argument("--data-dir", help="local mirror of the data sets (default: $PAPERS_DATA, else the Hub)")
    return parser


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on a terminal; the same without borders and unfolded where the output is a file or a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("claim", "verdict"))
    for row in rows:
        table.add_row(
            *(Text(c, _style(c) if column == "verdict" else "") for column, c in zip(columns, row, strict=True))
        )
    console.print(table)


def _style(verdict: str) -> str:
    word = verdict.split()[0] if verdict else ""
    if word in ("matched", "beaten", "holds", "exact"):
        return "green"
    return (
        "red" if word in ("short", "fails", "off") else "yellow" if word in ("deviates", "too", "undecided") else "dim"
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _list(arguments: argparse.Namespace) -> int:
    from common.claims import load, presets
    from tools.rows import judge_all, reported, row, verdict_text

    judged = judge_all(arguments.paper)
    if arguments.json:
        _print_json(
            {
                paper: {
                    "title": load(paper).paper.title,
                    "presets": list(presets(paper)),
                    "claims": [row(claim, verdict) for claim, verdict in claims],
                }
                for paper, claims in judged.items()
            }
        )
        return 0
    for paper, claims in judged.items():
        card = load(paper).paper
        print(f"{paper}: {card.title} ({card.authors[0]} et al., {card.venue} {card.year})")
        print(f"presets: {', '.join(presets(paper))}")
        _table(
            ["claim", "where", "reported", "reach", "verdict"],
            [(c.id, c.where, reported(c), c.reach, verdict_text(c, v)) for c, v in claims],
        )
    return 0


def _claim(arguments: argparse.Namespace) -> int:
    from common.claims import find
    from tools.measure import Way, measure
    from tools.rows import duration, ours, reported, row, verdict_text

    claims = [find(name) for name in dict.fromkeys(arguments.id)]
    way = Way(
        arguments.seeds,
        arguments.fresh,
        arguments.cut_down,
        tuple(arguments.set),
        arguments.device,
        arguments.data_dir,
    )
    if arguments.verify:
        if arguments.seeds or arguments.fresh or arguments.cut_down or arguments.set or arguments.device == "cuda":
            raise UserError("--verify repeats records as they are, on a CPU: leave out the other options")
        return _verify(claims, arguments.data_dir, arguments.json)
    results = [(claim, *measure(claim, way)) for claim in claims]
    if arguments.json:
        _print_json([row(claim, verdict) for claim, verdict, _ in results])
        return 0
    _table(
        ["claim", "metric", "reported", "ours (± 95 %)", "n", "verdict", "time"],
        [
            (
                claim.id,
                claim.metric,
                reported(claim),
                ours(claim, verdict),
                str(verdict.n),
                verdict_text(claim, verdict),
                duration(seconds if seconds else verdict.seconds),
            )
            for claim, verdict, seconds in results
        ],
    )
    for claim, verdict, _ in results:
        for title, lines in (("deviations", verdict.deviations), ("notes", verdict.notes)):
            if lines:
                print(f"{claim.id}: {title}\n" + "\n".join(f"  - {line}" for line in lines))
    return 0


def _verify(claims: Sequence[Any], mirror: str | None, as_json: bool) -> int:
    from tools.measure import verify

    repeated = [(claim, record, found) for claim in claims for record, found in verify(claim, mirror)]
    if as_json:
        _print_json([{"claim": c.id, "record": r.file_name(), "differences": found} for c, r, found in repeated])
    else:
        for _, record, found in repeated:
            print(f"{record.file_name()}: {'the bits differ' if found else 'all bits agree'}")
            print("".join(f"  - {line}\n" for line in found), end="")
            if found:
                print(f"  the record was made at commit {record.commit[:12]}")
    return 1 if any(found for *_, found in repeated) else 0


def _board(arguments: argparse.Namespace) -> int:
    from tools.board import check, write

    if arguments.port is not None and not arguments.serve:
        raise UserError("--port goes with --serve")
    if arguments.check:
        problems = check()
        if arguments.json:
            _print_json(problems)
        else:
            print("\n".join(problems) or "the pages are up to date, and every record is valid")
        return 1 if problems else 0
    changed = write()
    if arguments.json:
        _print_json(changed)
    else:
        print("\n".join(f"wrote {path}" for path in changed) or "the pages were up to date")
    if arguments.serve:
        from tools.serve import serve

        serve(arguments.port or 0)
    return 0


def _card(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from tools.card import make

    run = Path(arguments.run_folder)
    folder = Path(arguments.to) if arguments.to else run / "card"
    made = make(arguments.paper, run, folder)
    if arguments.json:
        _print_json([str(path) for path in made])
    else:
        print("\n".join(f"wrote {path}" for path in made))
        print(f"push it with: hf upload <your name>/{arguments.paper}-reproduced {folder}")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from common.claims import load
    from common.paths import paper_names
    from tools.measure import audit
    from tools.verdicts import judge

    rows, found = [], {}
    for paper in arguments.paper or paper_names():
        load(paper)
        record = audit(paper, arguments.data_dir, arguments.record)
        found[paper] = record.metrics
        claims: dict[str, list[Any]] = {}
        for claim in load(paper).claim:
            if claim.kind == "count":
                claims.setdefault(claim.metric, []).append(claim)
        for metric, value in record.metrics.items():
            shown = "" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"
            for claim in claims.pop(metric, [None]):
                verdict = judge(claim, [record]).name if claim else ""
                rows.append((paper, metric, shown, claim.value if claim else "", verdict, claim.where if claim else ""))
        for metric, unread in claims.items():
            rows += [(paper, metric, "", claim.value, "not run", claim.where) for claim in unread]
    if arguments.json:
        _print_json(found)
    else:
        _table(["paper", "count", "ours", "reported", "verdict", "where"], rows)
    return 0


def _next(arguments: argparse.Namespace) -> int:
    from tools.measure import queue
    from tools.rows import duration, reported

    items, blocked = queue(arguments.device, arguments.minutes, arguments.data_dir)
    if arguments.json:
        _print_json([vars(item) | {"claims": [claim.id for claim in item.claims]} for item in items])
        return 0
    rows = []
    for item in items:
        first, *others = item.claims
        name = f"{first.id} and {len(others)} more" if others else first.id
        cost = "unknown" if item.minutes is None else duration(item.minutes * 60)
        rows.append((name, reported(first), item.verdict, str(item.seeds_missing), cost, item.command))
    _table(["claim", "reported", "verdict", "seeds missing", f"cost on {arguments.device}", "command"], rows)
    if blocked:
        print(f"{blocked} more open claims need data that cannot be reached from here (repro doctor)")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from tools import bench

    if arguments.render:
        changed = bench.render()
        _print_json(changed) if arguments.json else print("\n".join(changed) or "the table was up to date")
        return 0
    if arguments.peer_dir:
        os.environ["PAPERS_PEERS"] = arguments.peer_dir
    records = []
    for paper in arguments.paper or bench.timed_papers():
        known = bench.cases(paper).CASES
        unknown = set(arguments.case) - set(known)
        if unknown:
            raise UserError(f"{paper} has no case {', '.join(sorted(unknown))}; it has {', '.join(known)}")
        for i, case in enumerate(arguments.case or known):
            growth = arguments.growth and i == 0  # it is the paper's, not the case's
            way = bench.Way(arguments.turns, arguments.threads, arguments.peers, growth)
            records.append(bench.race(paper, case, way, lambda text: print(text, file=sys.stderr, flush=True)))
            if arguments.record:
                bench.keep(records[-1])
    if arguments.record:
        bench.render()
    if arguments.json:
        _print_json([record.model_dump(mode="json") for record in records])
        return 0
    shown = bench.rows(records)
    _table(bench.COLUMNS, [[str(row[column]) for column in bench.COLUMNS] for row in shown])
    for record in records:
        for name, how in record.absent.items():
            print(f"{record.paper}/{record.case}: {name} is not here: {how}")
        if record.growth:
            times, memory = bench.growth_text(record.growth)
            for size, *found in zip(record.growth.sizes, times, memory, strict=True):
                print(f"{record.paper}: {record.growth.what} {size:,}: {', '.join(found)}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from tools.measure import examine

    found = examine(arguments.data_dir)
    if arguments.json:
        _print_json(found)
        return 0
    for name, value in found["versions"].items():
        print(f"{name:16} {value}")
    print(f"{'devices':16} {', '.join(found['devices'])}")
    print(f"{'threads':16} {found['threads']} a process (OMP_NUM_THREADS=1 is faster beside other work)")
    print(f"{'local mirror':16} {found['mirror'] or 'none (PAPERS_DATA is not set)'}")
    print(f"{'Hub':16} {'within reach' if found['hub'] else 'out of reach'}")
    _table(
        ["data set", "state", "claims it blocks", "how to get it"],
        [(d["name"], d["state"], str(len(d["blocks"])) if d["blocks"] else "", d["source"]) for d in found["data"]],
    )
    return 0


if __name__ == "__main__":
    main()
