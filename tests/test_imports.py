"""Imports run one way: papers/x -> common -> torch; tools read claims, records and configurations, never a model."""

import ast
from pathlib import Path

import pytest

from common.paths import ROOT, paper_names

TOP = ("common", "papers", "tools", "tests")


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    """Modules a file imports, `from a import b` as a.b."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def starting(modules: set[str], *prefixes: str) -> set[str]:
    return {m for m in modules if any(m == p or m.startswith(p + ".") for p in prefixes)}


@pytest.mark.parametrize("file", sorted((ROOT / "common").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_common_knows_no_paper_and_no_tool(file: Path) -> None:
    assert not starting(imports(file), "papers", "tools", "tests")


@pytest.mark.parametrize("paper", paper_names())
def test_a_paper_knows_only_itself_and_common(paper: str) -> None:
    for file in (ROOT / "papers" / paper).glob("*.py"):
        own = starting(imports(file), *TOP)
        assert not {m for m in own if not starting({m}, "common", f"papers.{paper}")}, file


@pytest.mark.parametrize("paper", paper_names())
def test_a_configuration_needs_only_the_standard_library(paper: str) -> None:
    import sys

    for module in imports(ROOT / "papers" / paper / "config.py"):
        assert module.split(".")[0] in sys.stdlib_module_names, module


@pytest.mark.parametrize("paper", paper_names())
def test_models_know_neither_configuration_nor_run(paper: str) -> None:
    for name in ("model.py", "data.py"):
        file = ROOT / "papers" / paper / name
        if file.exists():
            assert not starting(imports(file), "accelerate", "argparse", "tyro", f"papers.{paper}.config", "common.run")


@pytest.mark.parametrize("file", sorted((ROOT / "tools").glob("*.py")), ids=lambda f: f.name)
def test_tools_start_without_torch(file: Path) -> None:
    assert not starting(imports(file, top_level_only=True), "torch", "accelerate", "scipy", "common.run", "tests")
    assert not {m for m in starting(imports(file), "papers") if not m.endswith(".config")}


def test_help_and_dry_run_answer_without_torch() -> None:
    import subprocess
    import sys

    for program in (
        "from tools.repro import _parser; _parser().format_help()",
        f"from common.cli import describe, parse; [describe(parse(p, ['--preset', 'smoke'])) for p in {paper_names()}]",
    ):
        check = program + "; import sys; assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
        subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
