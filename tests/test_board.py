"""The leaderboard is a function of claims and records."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from common.claims import load
from common.paths import LEADERBOARDS, paper_names
from common.records import Picture, accept, load_all
from tools import board
from tools.rows import duration, judge_all, ours, reported
from tools.verdicts import judge


def test_rendering_twice_gives_the_same_pages() -> None:
    assert board.render() == board.render()


def test_the_committed_pages_are_up_to_date_and_every_record_is_valid() -> None:
    assert board.check() == []


def test_a_stale_page_and_a_damaged_record_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pages = board.render()
    first = LEADERBOARDS / "README.md"
    monkeypatch.setattr(board, "render", lambda: pages | {first: "other"})
    assert board.check() == ["leaderboards/README.md: stale; run `repro board`"]
    torn = tmp_path / "toy" / "a.json"
    torn.parent.mkdir()
    torn.write_text("{")
    monkeypatch.setattr(board, "RECORDS", tmp_path)
    (problem,) = board.check()
    assert "not a valid record" in problem


def test_pictures_are_those_their_records_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = Picture(alt="A <grid>", sha256=hashlib.sha256(b"a picture").hexdigest())
    made = next(r for r in load_all("vae") if r.claims).model_copy(update={"pictures": {"grid": shown}})
    path = accept(made, tmp_path)
    picture = path.with_name(made.picture_file("grid"))
    picture.write_bytes(b"a picture")
    monkeypatch.setattr(board, "RECORDS", tmp_path)
    monkeypatch.setattr(board, "ROOT", tmp_path)
    monkeypatch.setattr(board, "render", dict)
    assert board.check() == []
    picture.with_name("stray.png").write_bytes(b"")
    picture.write_bytes(b"another")
    wrong, stray = board.check()
    assert wrong.endswith("grid.png: not the picture its record names")
    assert stray == "vae/stray.png: belongs to no record"
    verdict = judge(next(c for c in load("vae").claim if c.id in made.claims), [made])
    (found,) = board._pictures([(load("vae").claim[0], verdict)])
    assert base64.b64decode(found["png"]) == b"another"
    assert found["caption"].endswith("A <grid>")


def test_the_page_needs_no_network_and_escapes_what_claims_say() -> None:
    page = board.render()[LEADERBOARDS / "index.html"]
    for fetched in ("<link", "@import", "url("):
        assert fetched not in page
    assert page.count("src=") == page.count('src="data:image/png;base64,')
    text = board._templates().from_string("{{ x }}").render(x="<script>")
    assert "<script>" not in text


def test_every_curve_that_is_drawn_has_two_points() -> None:
    page = board.render()[LEADERBOARDS / "index.html"]
    paths = re.findall(r'class="curve" d="([^"]*)"', page)
    assert paths
    assert all("L" in path for path in paths)


def test_every_claim_is_on_the_pages() -> None:
    pages = board.render()
    page = pages[LEADERBOARDS / "index.html"]
    for paper, claims in judge_all().items():
        text = pages[LEADERBOARDS / f"{paper}.md"]
        for claim, verdict in claims:
            assert f'id="{claim.id}"' in page
            assert f"`{claim.id}`" in text
            assert reported(claim)
            assert isinstance(ours(claim, verdict), str)


def test_records_speak_to_the_claims_they_name() -> None:
    for paper in paper_names():
        claims = {claim.id: verdict for claim, verdict in judge_all([paper])[paper]}
        for record in load_all(paper):
            assert set(record.claims) <= claims.keys()
            assert record.deviations.keys() == set(record.claims)


def test_judging_all_equals_judging_one() -> None:
    for paper, claims in judge_all().items():
        records = list(load_all(paper))
        for claim, verdict in claims:
            alone = judge(claim, records)
            assert (alone.name, alone.n, alone.ours) == (verdict.name, verdict.n, verdict.ours)


@pytest.mark.parametrize(("seconds", "text"), [(1.0, "1.0 s"), (42, "42 s"), (600, "10.0 min"), (7200, "2.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
