"""Records nobody ran: as many as asked, of every preset that measures a claim, for the size and the time of the page.

python -m tests.synthetic [10000]        # renders the board from them, and prints seconds and bytes
"""

import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from common.claims import as_config, deviations, load, presets, speaking_to
from common.paths import paper_names
from common.records import CURVE_POINTS, Picture, Record

PICTURED = 20  # every so many presets leave a picture


def write(number: int, folder: Path) -> None:
    """Write so many valid records below a folder: seed after seed of every preset, each with two full curves.

    A third of them come from another field's value, so that they deviate; some have a picture.
    """
    rng = np.random.default_rng(0)
    steps = [float(100 * k) for k in range(CURVE_POINTS)]
    falls = np.exp(-np.arange(CURVE_POINTS) / 20)
    measured = list(_presets())
    for i, ways in zip(range(number), cycle(measured), strict=False):
        way, seed = ways[i % 3 == 0], i // len(measured)
        metrics = {name: value * (1 + 0.02 * rng.standard_normal()) for name, value in way.metrics.items()}
        falling = [float(f"{x:.6g}") for x in falls + rng.random(CURVE_POINTS) / 10]
        pictures, drawn = {}, b""
        if seed == 0 and i % PICTURED == 0:
            drawn = _picture(rng)
            pictures = {"samples": Picture(alt="Noise", sha256=hashlib.sha256(drawn).hexdigest())}
        record = way.model_copy(
            update={
                "seed": seed,
                "metrics": metrics,
                "curves": {"train_loss": [steps, falling], next(iter(metrics)): [steps, falling[::-1]]},
                "pictures": pictures,
                "commit": f"{i:040x}",
                "device": f"CPU number {i % 4}",
                "wall_seconds": float(rng.random() * 100),
            }
        )
        path = folder / record.paper / record.file_name()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")
        if drawn:
            path.with_name(record.picture_file("samples")).write_bytes(drawn)


def _presets() -> Iterator[tuple[Record, Record]]:
    """Of every preset that measures a claim two records: one by its protocol, and one that deviates."""
    for paper in paper_names():
        known = presets(paper)
        sides = [(claim, side) for claim in load(paper).claim for side in claim.measured_by()]
        for preset in sorted({name for _, side in sides for name in side.presets} & known.keys()):
            config = as_config(known[preset])
            field = next(name for name, value in config.items() if type(value) in (int, float))
            metrics = {side.metric: float(claim.value or 1) for claim, side in sides if preset in side.presets}
            plain = Record(
                paper=paper,
                preset=preset,
                overrides={},
                config=config,
                seed=0,
                stacked=1,
                status="finished",
                claims=[claim.id for claim in speaking_to(paper, preset, metrics)],
                deviations={},
                metrics=metrics,
                curves={},
                data={},
                commit="",
                dirty=False,
                versions={"torch": "2.13.0"},
                device="",
                precision="no",
                processes=1,
                threads=1,
                started="2026-01-01T00:00:00+00:00",
                wall_seconds=1.0,
                steps_per_second=10.0,
                peak_memory_mib=500.0,
            )
            changed = {field: config[field] + 1}
            deviating = plain.model_copy(update={"overrides": changed, "config": config | changed})
            yield tuple(  # type: ignore[misc]
                record.model_copy(
                    update={
                        "deviations": {
                            claim.id: deviations(claim, side, record.config, {})
                            for claim, side in sides
                            if preset in side.presets
                        }
                    }
                )
                for record in (plain, deviating)
            )


def _picture(rng: np.random.Generator) -> bytes:
    """About 100 kB."""
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (180, 180, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    from tools import board, checks

    with tempfile.TemporaryDirectory() as folder:
        write(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, Path(folder))
        for name, step in (
            ("render", board.render),
            ("once more", board.render),
            ("check the records", checks.examine),
        ):
            clock, cpu = time.perf_counter(), time.process_time()
            made = step(folder=Path(folder))
            seconds = f"{time.perf_counter() - clock:.2f} s, {time.process_time() - cpu:.2f} s of a core"
            print(f"{name}: {seconds}" + (f"; {len(made[0])} problems" if isinstance(made, tuple) else ""))
            if isinstance(made, dict):
                page = next(text for path, text in made.items() if path.name == "index.html")
                print(f"index.html: {len(page.encode()):,} bytes; all texts: {sum(map(len, made.values())):,}")


if __name__ == "__main__":
    main()
