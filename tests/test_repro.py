"""The console script, as users and programs call it."""

import json

import pytest

from common.claims import load, presets
from common.paths import paper_names
from common.records import Record, load_all, read
from tools.repro import main


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    said = capsys.readouterr()
    return stop.value.code or 0, said.out, said.err  # type: ignore[return-value]


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list", "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found) == paper_names()
    for paper in paper_names():
        assert [c["id"] for c in found[paper]["claims"]] == [c.id for c in load(paper).claim]
        assert found[paper]["presets"] == list(presets(paper))
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert all(claim.id in out for paper in paper_names() for claim in load(paper).claim)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("list", "gnc"), "unknown paper 'gnc'; did you mean gcn?"),
        (("claim", "lstm/table9/6x"), "did you mean lstm/table9/6"),
        (("claim", "lstm/table9/6a", "--seeds", "0"), "not a positive number"),
        (("claim", "lstm/table9/6a", "--set", "blocks"), "should read FIELD=VALUE"),
        (("claim", "lstm/table9/6a", "--set", "block=3"), "unknown field --block; did you mean --blocks?"),
        (("claim", "vae/fig2/frey-nz5/test", "--cut-down"), "has no cut-down presets"),
        (("claim", "lstm/table9/6a", "--verify", "--fresh"), "leave out the other options"),
        (("boarding",), "invalid choice"),
        ((), "required"),
        (("board", "--chek"), "unrecognized arguments"),
        (("board", "--check", "--serve"), "not allowed with argument"),
        (("board", "--serve", "--port", "65536"), "is not a port"),
        (("board", "--port", "8000"), "--port goes with --serve"),
        (("card", "gcn"), "required: --run"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str) -> None:
    code, _, err = call(capsys, *argv)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_audit_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERS_DATA", raising=False)
    code, out, _ = call(capsys, "audit", "--json")
    assert code == 0
    assert json.loads(out).keys() == set(paper_names())


def test_next_is_sorted_by_cost_and_priced(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "next", "--json", "--device", "cuda", "--minutes", "100000")
    assert code == 0
    costs = [item["minutes"] for item in json.loads(out)]
    assert costs == sorted(costs)
    assert all(item["command"].startswith("repro ") for item in json.loads(out))


def test_doctor_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = call(capsys, "doctor", "--json", "--data-dir", str(tmp_path))
    found = json.loads(out)
    assert code == 0
    assert found["versions"]["torch"]
    missing = [d for d in found["data"] if d["state"] == "missing"]
    assert missing
    assert any(d["blocks"] for d in missing)


def test_a_claim_is_measured_afresh(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    """`repro claim --fresh` runs the paper's script and judges by those runs alone."""
    import tools.measure

    monkeypatch.setattr(tools.measure, "RUNS", tmp_path)
    code, out, err = call(capsys, "claim", "lstm/table9/6a", "--fresh", "--seeds", "2", "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert row["n"] == 2
    assert row["verdict"] == "too few seeds"
    assert row["mean"] > 1000
    kept = [read(path) for path in sorted(tmp_path.glob("lstm/*/records/*.json"))]
    assert len(kept) == 2

    def verified(*records: Record) -> tuple[int, str, str]:
        monkeypatch.setattr(tools.measure, "load_all", lambda paper: records)
        return call(capsys, "claim", "lstm/table9/6a", "--verify")

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, _ = verified(*kept)
    assert (code, out) == (0, "".join(f"{record.file_name()}: all bits agree\n" for record in kept))
    name, value = next(iter(kept[1].metrics.items()))
    changed = kept[1].model_copy(update={"metrics": kept[1].metrics | {name: value + 1}})  # type: ignore[operator]
    code, out, _ = verified(kept[0], changed)
    assert code == 1
    assert out.splitlines()[2] == f"  - metrics: {name} {value + 1} → {value}"  # type: ignore[operator]
    code, _, err = verified(kept[0].model_copy(update={"device": "CPU (another)"}))
    assert code == 2
    assert "has no record that could be repeated here; one made elsewhere: device CPU (another), here CPU" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_seeds_on_record_are_not_run_again(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import tools.measure

    asked: list[list[int]] = []

    def run(paper: str, preset: str, seeds: list[int], *_, **__) -> list:  # type: ignore[no-untyped-def]
        asked.append(seeds)
        return []

    monkeypatch.setattr(tools.measure, "run", run)
    have = tools.measure.recorded_seeds(load_all("lstm"), "table9-6a", presets("lstm")["table9-6a"])
    assert have >= set(range(20))
    code, out, _ = call(capsys, "claim", "lstm/table9/6a", "--json")
    assert (code, json.loads(out)[0]["n"], asked) == (0, len(have), [])
    call(capsys, "claim", "lstm/table9/6a", "--seeds", "1000")
    assert asked == [[seed for seed in range(1000) if seed not in have]]


def test_changed_fields_and_cut_down_presets_are_runs_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tools.measure

    asked: list[tuple[str, list[int], list[str]]] = []

    def run(paper: str, preset: str, seeds: list[int], way: tools.measure.Way) -> list:
        asked.append((preset, seeds, way.fields))
        return []

    monkeypatch.setattr(tools.measure, "run", run)
    assert call(capsys, "claim", "lstm/table9/6a", "--set", "blocks=3", "--seeds", "2")[0] == 0
    assert asked == [("table9-6a", [0, 1], ["--blocks", "3"])]
    claim = next(c for paper in paper_names() for c in load(paper).claim if c.cut_down and c.preset)
    asked.clear()
    call(capsys, "claim", claim.id, "--cut-down", "--seeds", "10000")
    assert [preset for preset, *_ in asked] == [claim.cut_down[0]]


def test_next_offers_the_stand_in_of_data_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import tools.measure
    from common.claims import Data

    monkeypatch.setattr(tools.measure.hub, "reachable", lambda: False)
    claim = next(c for c in load("vae").claim if c.preset and presets("vae")[c.preset].dataset == "ylecun/mnist")
    copy = Data(name="local/copy", source="a copy")
    real = Data(name="ylecun/mnist", source="the Hub", stand_in="local/copy")
    facts = load("vae").model_copy(update={"data": [real, copy]})
    monkeypatch.setattr(tools.measure, "load", lambda paper: facts)
    assert tools.measure._stand_in(claim, str(tmp_path), False) is None
    (tmp_path / "hub" / "local" / "copy").mkdir(parents=True)
    assert tools.measure._stand_in(claim, str(tmp_path), False) == "local/copy"
    (tmp_path / "hub" / "ylecun" / "mnist").mkdir(parents=True)
    assert tools.measure._stand_in(claim, str(tmp_path), False) == ""
