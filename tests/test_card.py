"""`repro card`: weights as the checkpoint has them, and a card that the Hub's library reads."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from common.checkpoint import newest
from common.claims import load, presets
from common.errors import UserError
from common.records import accept, load_all
from tests.test_papers import records_of, smoke
from tools import card, exports
from tools.repro import main
from tools.rows import judge_paper


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gcn"
    smoke("gcn", folder, "--seed", "0-1")
    return folder


def test_weights_are_those_of_the_last_step(run: Path, tmp_path: Path) -> None:
    made = card.make("gcn", run, tmp_path)
    assert [path.name for path in made] == ["model.safetensors", "config.json", "README.md"]
    state = newest(run / "checkpoints")[2]
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == {f"model.{name}" for name in state["model"]}  # no optimiser, no bookkeeping
    for name, tensor in state["model"].items():
        assert torch.equal(weights[f"model.{name}"], tensor)
    assert json.loads((tmp_path / "config.json").read_text()) == records_of(run)[0].config


def test_the_card_has_what_the_run_measured(run: Path, tmp_path: Path) -> None:
    card.make("gcn", run, tmp_path)
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.library_name == "pytorch"
    assert read.data.model_name == "gcn-reproduced"
    records = records_of(run)
    for result in read.data.eval_results:
        mean = sum(record.metrics[result.metric_type] for record in records) / 2
        assert result.metric_value == pytest.approx(mean, rel=1e-5)
        assert result.dataset_name == "synthetic/blocks"
    assert {result.metric_type for result in read.data.eval_results} == set(records[0].metrics)
    assert "seed 0-1" in read.text
    assert "`model.safetensors`" in read.text


def test_a_card_of_claims_names_them(tmp_path: Path) -> None:
    records = [r for r in load_all("gcn") if "gcn/table2/gcn/cora" in r.claims][:3]
    text = exports.card(load("gcn"), judge_paper("gcn", records), ["Weights."], card._means(records), records[0].preset)
    found = {(r.metric_name, r.metric_type): r for r in ModelCard(text).data.eval_results}
    mean = sum(r.metrics["test_accuracy"] for r in records) / 3
    (claim,) = [r for (name, _), r in found.items() if "too few seeds (3 of 100)" in name and "Table 2" in name]
    assert claim.metric_value == pytest.approx(mean, rel=1e-5)
    assert claim.dataset_name == presets("gcn")[records[0].preset].dataset
    assert "`gcn/table2/gcn/cora`" in text
    assert "no weights are here" not in text


def test_seeds_trained_one_after_the_other_have_their_own_weights(tmp_path: Path) -> None:
    smoke("dcgan", tmp_path / "run", "--seed", "3-4")
    made = card.make("dcgan", tmp_path / "run", tmp_path / "card")
    assert [path.name for path in made][:2] == ["model-seed-3.safetensors", "model-seed-4.safetensors"]
    first, second = (load_file(path) for path in made[:2])
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_what_is_no_finished_run_of_the_paper_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a run of gcn, not of vae"):
        card.make("vae", run, tmp_path)
    with pytest.raises(UserError, match="no run there"):
        card.make("gcn", tmp_path, tmp_path)
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(UserError, match="is not complete; go on with"):
        card.make("gcn", tmp_path, tmp_path / "card")
    accept(records_of(run)[0], tmp_path / "records")
    (tmp_path / "records" / "gcn").rename(tmp_path / "gcn")
    (tmp_path / "records").rmdir()
    (tmp_path / "gcn").rename(tmp_path / "records")
    with pytest.raises(UserError, match="left no weights"):
        card.make("gcn", tmp_path, tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["card", "gcn", "--run", str(run), "--to", str(tmp_path), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out) == [
        str(tmp_path / name) for name in ("model.safetensors", "config.json", "README.md")
    ]
    with pytest.raises(SystemExit) as stop:
        main(["card", "gcn", "--run", str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
