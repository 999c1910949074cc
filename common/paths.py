"""Where things lie: everything is found from the repository's root."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ROOT / "papers"
LEADERBOARDS = ROOT / "leaderboards"
RECORDS = LEADERBOARDS / "records"
RUNS = ROOT / "runs"


def paper_names() -> list[str]:
    """Papers are folders: whatever below `papers/` holds claims."""
    return sorted(p.parent.name for p in PAPERS.glob("*/claims.toml"))


def data_dir(given: str | Path | None) -> Path | None:
    """The local mirror: `--data-dir`, else the environment's PAPERS_DATA, else none (the Hub is asked)."""
    path = given or os.environ.get("PAPERS_DATA")
    return Path(path).expanduser().resolve() if path else None
