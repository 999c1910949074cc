"""What GitHub reads: workflows, issue forms, the pull request's question."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.paths import ROOT

GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FIELDS = {
    "input": {"label", "description", "placeholder", "value"},
    "textarea": {"label", "description", "placeholder", "value", "render"},
    "dropdown": {"label", "description", "options", "multiple", "default"},
    "checkboxes": {"label", "description", "options"},
    "markdown": {"value"},
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_are_forms_for_a_number_and_for_a_paper() -> None:
    assert [read(form)["name"] for form in FORMS] == ["A number differs", "Add a paper"]
    assert read(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": True}


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_follow_githubs_schema(form: Path) -> None:
    found = read(form)
    assert found.keys() <= {"name", "description", "title", "labels", "body", "assignees", "projects", "type"}
    assert all(isinstance(found[key], str) and found[key] for key in ("name", "description", "title"))
    ids = [field["id"] for field in found["body"] if field["type"] != "markdown"]
    labels = [field["attributes"]["label"] for field in found["body"] if field["type"] != "markdown"]
    assert ids
    assert len(set(ids)) == len(ids)
    assert len(set(labels)) == len(labels)
    for field in found["body"]:
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert field["attributes"].keys() <= FIELDS[field["type"]]
        assert field.get("validations", {}).keys() <= {"required"}
        assert re.fullmatch(r"[A-Za-z0-9_-]+", field["id"])
        for option in field["attributes"].get("options", []):
            assert isinstance(option, dict if field["type"] == "checkboxes" else str)
    assert any(field.get("validations", {}).get("required") for field in found["body"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_what_they_call(workflow: Path) -> None:
    found = read(workflow)
    assert found[True]  # YAML 1.1 reads the key `on` as true; GitHub does not
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for job in found["jobs"].values():
        assert job["timeout-minutes"] > 0 if "needs" not in job else job["needs"] in found["jobs"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/a@v1"))
            assert set(re.findall(r"^make ([a-z]+)", step.get("run", ""), re.M)) <= targets
            if step.get("run", "").startswith("."):
                assert (ROOT / step["run"]).is_file()


def test_the_page_is_published_from_a_build_and_the_browsers_tests_have_a_job() -> None:
    pages = read(GITHUB / "workflows" / "pages.yml")["jobs"]
    assert pages["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert "make leaderboard" in [step.get("run") for step in pages["build"]["steps"]]
    runs = " ".join(step.get("run", "") for step in read(GITHUB / "workflows" / "ci.yml")["jobs"]["browser"]["steps"])
    assert all(word in runs for word in ("chromium chromium-driver", "axe-core", "make browser"))


def test_a_pull_request_is_asked_the_question_of_contributing() -> None:
    question = "can this change move a number?"
    assert question in (GITHUB / "pull_request_template.md").read_text(encoding="utf-8").lower()
    assert question in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").lower()
