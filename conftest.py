"""Fixtures shared by the tests of common/, tools/ and every paper."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from common.paths import ROOT

settings.register_profile("untimed", deadline=None)  # by default an example that takes over 200 ms fails
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def papers_data() -> Path:
    """The local mirror of data sets; tests on real data run only where PAPERS_DATA points to one."""
    folder = os.environ.get("PAPERS_DATA")
    if not folder:
        pytest.skip("PAPERS_DATA is not set: tests on real data need a mirror")
    return Path(folder).resolve()


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script() -> Script:
    """Run a program of the project as a user would: `script("papers.gcn.train", "--preset", "smoke")`."""

    def run(module: str, *arguments: str, processes: int = 1, env: dict[str, str] | None = None, **more):  # type: ignore[no-untyped-def]
        command = [sys.executable, "-m", module]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | (env or {})
        if processes > 1:
            torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
            command = [sys.executable, "-m", *torchrun, module]
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, **more
        )

    return run
