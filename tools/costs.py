"""What is open and what it would cost: for the page, from claims and records (`repro next` asks the machine too)."""

import math
from dataclasses import dataclass

from common.claims import Claim, presets
from tools.measure import recorded_seeds
from tools.rows import Judged, command, runnable


@dataclass(frozen=True)
class Open:
    """Claims that the same runs would settle.

    Attributes:
        missing: seeds still to run, of the preset that lacks most.
        cpu_minutes, gpu_minutes: what is still to be spent on two CPU cores, or on one GPU; None where unknown.
    """

    claims: tuple[Claim, ...]
    verdict: str
    missing: int
    cpu_minutes: float | None
    gpu_minutes: float | None
    command: str

    @property
    def reach(self) -> str:
        return self.claims[0].reach

    @property
    def minutes(self) -> float:
        """On whichever is quicker; infinite where nobody has estimated it."""
        return min(self.cpu_minutes or math.inf, self.gpu_minutes or math.inf)


def open_claims(judged: dict[str, Judged]) -> list[Open]:
    """Open claims that can be run, cheapest first; those that the same presets measure stand together."""
    together: dict[tuple[str, ...], Open] = {}
    for paper, claims in judged.items():
        for claim, verdict in claims:
            if verdict.settled or claim.kind == "count" or not runnable(claim):
                continue
            asked = 2 * verdict.n if verdict.name == "undecided" else verdict.seeds_needed or claim.seeds_asked
            wanted = list(dict.fromkeys(side.preset for side in claim.measured_by()))
            known = presets(paper)
            missing = [asked - len(recorded_seeds(verdict.records, preset, known[preset])) for preset in wanted]
            if max(missing) <= 0:
                continue  # more seeds would not settle it
            share = sum(max(0, seeds) for seeds in missing) / (claim.seeds_asked * len(missing))
            text = command(claim).removesuffix(" --fresh")
            text += f" --seeds {asked}" if asked > claim.seeds_asked else ""
            key = (paper, claim.reach, *wanted)
            before = together.get(key)
            together[key] = Open(
                claims=(*(before.claims if before else ()), claim),
                verdict=before.verdict if before else verdict.name,
                missing=max(max(missing), before.missing if before else 0),
                cpu_minutes=_larger(claim.cpu_minutes, share, before.cpu_minutes if before else None),
                gpu_minutes=_larger(claim.gpu_minutes, share, before.gpu_minutes if before else None),
                command=before.command if before else text,
            )
    return sorted(together.values(), key=lambda item: (item.minutes, item.claims[0].id))


def _larger(minutes: float | None, share: float, before: float | None) -> float | None:
    found = [x for x in (minutes and minutes * share, before) if x]
    return max(found) if found else None
