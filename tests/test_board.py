"""The leaderboard is a function of claims and records, and its page needs nothing but itself."""

import base64
import csv
import hashlib
import io
import json
import re
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from common.claims import load
from common.errors import UserError
from common.paths import LEADERBOARDS, ROOT, paper_names
from common.records import Picture, accept, load_all
from tests import synthetic
from tools import board, checks, page, plots
from tools.rows import changed_since, duration, judge_all, ours, reported
from tools.serve import server
from tools.verdicts import judge

PAGE_BYTES = 5_000_000


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    return board.render()


@pytest.fixture(scope="module")
def html(pages: dict[Path, str]) -> str:
    return pages[LEADERBOARDS / "index.html"]


class Elements(HTMLParser):
    """Every element of a page as (tag, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.found if (value := attributes.get(attribute)) is not None]


@pytest.fixture(scope="module")
def elements(html: str) -> Elements:
    return Elements(html)


# ---- what is rendered


def test_rendering_twice_gives_the_same_pages(pages: dict[Path, str]) -> None:
    assert board.render() == pages


def test_the_committed_pages_are_up_to_date_and_every_record_is_valid() -> None:
    assert board.check() == []


def test_a_stale_page_and_a_damaged_record_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pages: dict[Path, str]
) -> None:
    first = LEADERBOARDS / "README.md"
    monkeypatch.setattr(board, "render", lambda judged: pages | {first: "other"})
    assert board.check() == ["leaderboards/README.md: stale; run `repro board`"]
    torn = tmp_path / "gcn" / "a.json"
    torn.parent.mkdir()
    torn.write_text("{")
    ((problem,), _) = checks.examine(tmp_path)
    assert "not a valid record" in problem


def test_every_claim_is_on_the_pages(pages: dict[Path, str], html: str) -> None:
    for paper, claims in judge_all().items():
        text = pages[LEADERBOARDS / f"{paper}.md"]
        for claim, verdict in claims:
            assert f'id="{claim.id}"' in html
            assert f"`{claim.id}`" in text
            assert reported(claim)
            assert isinstance(ours(claim, verdict), str)


def test_judging_all_equals_judging_one() -> None:
    for paper, claims in judge_all().items():
        records = list(load_all(paper))
        for claim, verdict in claims:
            alone = judge(claim, records)
            assert (alone.name, alone.n, alone.ours) == (verdict.name, verdict.n, verdict.ours)


@pytest.mark.parametrize(("seconds", "text"), [(1.0, "1.0 s"), (42, "42 s"), (600, "10.0 min"), (7200, "2.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- records are checked


def problems_of(folder: Path) -> list[str]:
    return checks.examine(folder)[0]


def test_pictures_are_those_their_records_name(tmp_path: Path) -> None:
    shown = Picture(alt="A <grid>", sha256=hashlib.sha256(b"a picture").hexdigest())
    made = next(r for r in load_all("vae") if r.claims).model_copy(update={"pictures": {"grid": shown}})
    path = accept(made, tmp_path)
    picture = path.with_name(made.picture_file("grid"))
    picture.write_bytes(b"a picture")
    assert problems_of(tmp_path) == []
    picture.with_name("stray.png").write_bytes(b"")
    picture.write_bytes(b"another")
    wrong, stray = problems_of(tmp_path)
    assert wrong.endswith("grid.png: not the picture its record names")
    assert stray.endswith("vae/stray.png: belongs to no record")
    claim = next(c for c in load("vae").claim if c.id in made.claims)
    ((found,),) = page._pictures({"vae": [(claim, judge(claim, [made]))]}, tmp_path).values()
    assert base64.b64decode(found["png"]) == b"another"
    assert found["caption"].endswith("A <grid>")


def test_claims_and_metrics_of_a_record_are_checked(tmp_path: Path) -> None:
    made = next(r for r in load_all("gcn") if "gcn/table2/gcn/cora" in r.claims)
    accept(made, tmp_path)
    wrong = [*made.claims, "gcn/table9/none"]
    accept(made.model_copy(update={"claims": wrong, "seed": 1001}), tmp_path)
    accept(made.model_copy(update={"metrics": {"loss": 1.0}, "seed": 1002}), tmp_path)
    found = problems_of(tmp_path)
    assert any("s1001.json: unknown claim gcn/table9/none" in line for line in found)
    assert any("s1001.json: its deviations are of other claims" in line for line in found)
    assert any("s1002.json: names gcn/table2/gcn/cora" in line for line in found)
    assert not any(f"s{made.seed}.json" in line for line in found)


def test_one_seed_of_one_configuration_has_one_record(tmp_path: Path) -> None:
    made = next(r for r in load_all("gcn") if "timed" in r.config)
    accept(made, tmp_path)
    older = {name: value for name, value in made.config.items() if name != "timed"}  # before there was such a field
    accept(made.model_copy(update={"config": older}), tmp_path)
    (found,) = problems_of(tmp_path)
    assert f"seed {made.seed} of this configuration has a record already" in found


def test_a_record_in_another_papers_folder_is_found(tmp_path: Path) -> None:
    path = accept(next(iter(load_all("gcn"))), tmp_path)
    (tmp_path / "vae").mkdir()
    path.rename(tmp_path / "vae" / path.name)
    (found,) = problems_of(tmp_path)
    assert found.endswith("belongs to gcn")


def test_a_preset_that_changed_since_is_said(tmp_path: Path) -> None:
    made = next(r for r in load_all("gcn") if "gcn/table2/gcn/cora" in r.claims)
    assert changed_since(made) == []
    then = made.model_copy(update={"config": made.config | {"lr": 0.5}})
    (line,) = changed_since(then)
    assert line == f"lr: was 0.5, is {made.config['lr']}"
    claim = next(c for c in load("gcn").claim if c.id == "gcn/table2/gcn/cora")
    verdict = judge(claim, [then])
    assert verdict.name == "deviates"
    assert page._row(claim, verdict, page.Payload())["stale"]


def test_records_speak_to_the_claims_they_name() -> None:
    for paper in paper_names():
        claims = {claim.id for claim in load(paper).claim}
        for record in load_all(paper):
            assert set(record.claims) <= claims
            assert record.deviations.keys() == set(record.claims)


# ---- the page, without a browser (with one: test_browser.py)


def test_the_page_asks_for_nothing_and_escapes_what_claims_say(html: str, elements: Elements) -> None:
    for fetched in ("@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert fetched not in html
    for tag, attributes in elements.found:
        assert tag not in ("iframe", "object", "embed", "base", "video", "audio")
        assert tag != "script" or "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
        assert attributes.get("src", "data:").startswith("data:")  # type: ignore[union-attr]
        assert "srcset" not in attributes
    assert "<script>" not in page._templates().from_string("{{ x }}").render(x="<script>")
    payload = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert payload
    assert "<" not in payload[1]


def test_every_picture_has_a_text_that_says_what_is_to_see(elements: Elements, pages: dict[Path, str]) -> None:
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert pictures
    assert all(len(attributes["alt"] or "") > 5 for attributes in pictures)
    assert all(attributes.get("aria-label") for _, attributes in elements.found if attributes.get("role") == "img")
    shown = 0
    for path, text in pages.items():
        for alt, file in re.findall(r"!\[(.*?)\]\((\S+?)\)", text) if path.suffix == ".md" else []:
            assert len(alt) > 5, path
            assert (path.parent / file).is_file(), f"{path}: {file}"
            shown += 1
    assert shown >= len(plots._others({})) + 1


def test_links_within_the_page_and_to_files_lead_somewhere(elements: Elements) -> None:
    ids = elements.values("id")
    assert len(ids) == len(set(ids))
    links = set(elements.values("href"))
    inside = {link[1:] for link in links if link.startswith("#")}
    assert inside
    assert inside <= set(ids)
    for link in links:
        if not re.match(r"#|https?:|data:|mailto:", link):
            assert (LEADERBOARDS / link.partition("#")[0]).exists(), link
    named = elements.values("aria-labelledby") + elements.values("aria-controls")
    assert set(named) <= set(ids)


def test_colours_can_be_told_apart() -> None:
    """WCAG AA: 4.5 for text, 3 for what pictures are drawn with."""
    css = (ROOT / "tools" / "templates" / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", css_of)) for css_of in css.split("@media", 2)[:2])
    assert light.keys() == dark.keys()

    def luminance(color: str) -> float:
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    words = [(text, on) for text in ("ink", "dim", "link") for on in ("page", "soft")]
    words += [(kind, on) for kind in ("good", "bad", "warn", "none") for on in (f"{kind}-bg", "page", "soft")]
    words += [("page", "ink")]  # the hint beside a dot
    drawn = [(color, on) for color in ("accent", "good-bar", "bad-bar", "warn-bar") for on in ("page", "soft")]
    for theme in (light, dark):
        assert {pair: c for pair in words if (c := contrast(*(theme[name] for name in pair))) < 4.5} == {}
        assert {pair: c for pair in drawn if (c := contrast(*(theme[name] for name in pair))) < 3} == {}


def test_curves_are_thinned_to_fit_and_say_so(html: str) -> None:
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert data["curves"]
    assert "thinned to ${DATA.points} points" in html
    for curve in data["curves"]:
        assert len(curve["seeds"]) == len(curve["y"]) <= min(curve["runs"], page.CURVES_SHOWN)
        assert len(curve["x"]) in (1, len(curve["y"]))
        assert all(2 <= len(line) <= data["points"] for line in curve["y"])
    drawn = {at for claim in data["claims"].values() for _, at in claim.get("curves", [])}
    assert drawn == set(range(len(data["curves"])))


def test_ten_thousand_records_stay_below_five_megabytes(tmp_path: Path) -> None:
    synthetic.write(10_000, tmp_path)
    problems, records = checks.examine(tmp_path)
    assert problems == []
    assert sum(map(len, records.values())) == 10_000
    made = board.render(folder=tmp_path)
    text = made[LEADERBOARDS / "index.html"]
    assert len(text.encode()) < PAGE_BYTES
    elements = Elements(text)
    assert any(tag == "img" for tag, _ in elements.found)
    assert "left out here to keep the page small" in text


def test_the_picture_of_the_page_is_no_stray_and_is_small() -> None:
    assert plots.TAKEN.stat().st_size < 150_000
    assert plots.TAKEN not in plots.stale(judge_all())


def test_a_plots_only_green_dot_is_green_and_its_ground_white() -> None:
    values = [["a", 1.0, 0.1, "no verdict"]] * 20 + [["b", 0.5, 0.1, "agrees"]]
    curve = ["title", "loss", "step", 1, None, [[[0.0, 1.0], [1.0, 0.5]]]]
    png = plots._paper({"values": values, "of": 21, "curves": [curve]})
    shown = sorted(Image.open(io.BytesIO(png)).convert("RGB").getcolors(1000), reverse=True)
    assert shown[0][1] == (255, 255, 255)
    wanted = {tuple(bytes.fromhex(plots.COLORS[group][1:])) for group in ("agrees", "no verdict")}
    assert wanted <= {color for _, color in shown}


# ---- exports


def test_results_fit_their_published_schema(pages: dict[Path, str]) -> None:
    results = json.loads(pages[LEADERBOARDS / "results.json"])
    schema = json.loads(pages[LEADERBOARDS / "results.schema.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(results)
    assert len(results["claims"]) == sum(len(load(paper).claim) for paper in paper_names())
    results["claims"][0]["verdict_"] = "matched"
    assert not validator.is_valid(results)


def test_records_fit_their_published_schema(pages: dict[Path, str]) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(pages[LEADERBOARDS / "record.schema.json"]))
    for paper in paper_names():
        record = next(iter(load_all(paper)))
        validator.validate(json.loads(record.to_json()))


def test_the_table_can_be_read(pages: dict[Path, str]) -> None:
    rows = list(csv.DictReader(io.StringIO(pages[LEADERBOARDS / "results.csv"])))
    claims = {claim["id"]: claim for claim in json.loads(pages[LEADERBOARDS / "results.json"])["claims"]}
    assert [row["id"] for row in rows] == list(claims)
    for row in rows:
        claim = claims[row["id"]]
        assert None not in row  # no cell too many
        assert row["verdict"] == claim["verdict"]
        assert (float(row["mean"]) if row["mean"] else None) == claim["mean"]


@pytest.mark.parametrize("paper", paper_names())
def test_model_cards_are_what_the_hub_reads(paper: str, pages: dict[Path, str]) -> None:
    card = ModelCard(pages[LEADERBOARDS / "cards" / f"{paper}.md"])
    assert card.data.license == "mit"
    assert paper in card.data.tags
    measured = [v for c, v in judge_all([paper])[paper] if v.records and c.kind != "count" and v.ours is not None]
    found = card.data.eval_results or []
    assert len(found) == len(measured)
    numbers = sorted(float(f"{verdict.ours:.6g}") for verdict in measured)
    assert sorted(result.metric_value for result in found) == numbers  # the Hub's library puts data sets together
    for result in found:
        assert result.task_type == load(paper).paper.task
        assert all((result.dataset_name, result.dataset_type, result.metric_type, result.metric_name))


# ---- repro board --serve


def test_the_page_is_served_to_this_machine_alone() -> None:
    with server(0) as pages:
        host, port = pages.server_address[:2]
        assert host == "127.0.0.1"
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                assert answer.url.endswith("/leaderboards/index.html")
                assert answer.read() == (LEADERBOARDS / "index.html").read_bytes()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/papers/gcn/README.md") as answer:
                assert answer.headers["Content-Type"].startswith("text/plain")
            for path in ("pyproject.toml", ".git/HEAD", "leaderboards/../pyproject.toml", "leaderboards", "nothing"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}")
            with pytest.raises(UserError, match=f"port {port} cannot be used"):
                server(port)
        finally:
            pages.shutdown()
            thread.join()
