"""The page as a reader has it: Chromium without a network, a mouse, a keyboard, a phone, and axe-core.

Deselected by default (`pytest -m browser`): what it needs is at the head of `tests/browser.py`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.paths import LEADERBOARDS
from tests.browser import Page, opened

pytestmark = pytest.mark.browser
CLAIM, PICTURED = "gcn/table2/gcn/cora", "vae"
VIEWS = ["papers", "scatter", "next", "speed", "verdicts"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page in a folder of its own: whatever it needs must be in it."""
    return Path(shutil.copy(LEADERBOARDS / "index.html", tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def shared(alone: Path) -> Iterator[Page]:
    with opened(alone) as page:
        yield page


@pytest.fixture
def page(shared: Page) -> Page:
    return shared.open()


@pytest.fixture(scope="module")
def claims() -> dict[str, dict]:
    return {claim["id"]: claim for claim in json.loads((LEADERBOARDS / "results.json").read_text())["claims"]}


def choose(page: Page, **filters: str) -> list[str]:
    """Set the filters as a hand would; returns the claims shown."""
    page.run(
        """for (const [name, value] of Object.entries(arguments[0])) {
             const control = document.querySelector(`#filters [name=${name}]`);
             control.value = value; control.dispatchEvent(new Event("input", {bubbles: true}));
           }""",
        filters,
    )
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")  # typing is waited for
    return page.run("return [...document.querySelectorAll('.row:not([hidden])')].map(row => row.id)")


def test_it_loads_from_disk_with_no_request_and_no_word_on_the_console(page: Page, claims: dict) -> None:
    for view in VIEWS:
        page.run("location.hash = arguments[0]", view)
        page.driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
        assert page.run(
            "return [...document.querySelectorAll('.view')].filter(v => v.checkVisibility()).map(v => v.id)"
        ) == [f"view-{view}"]
    page.run("for (const details of document.querySelectorAll('details')) details.open = true")
    page.run("for (const button of document.querySelectorAll('.open')) button.click()")  # draws every claim's pictures
    assert page.run("return document.querySelectorAll('.detail').length") == len(claims)
    asked = [url for url in page.requests() if not url.startswith("data:")]
    assert {url.partition("#")[0] for url in asked} == {page.address}
    assert page.console() == []


def test_filters_show_what_fits_and_nothing_else(page: Page, claims: dict) -> None:
    def wanted(**facts: str) -> set[str]:
        return {name for name, claim in claims.items() if all(claim[k] == v for k, v in facts.items())}

    assert set(choose(page, paper="gcn")) == wanted(paper="gcn")
    assert set(choose(page, verdict="matched")) == wanted(paper="gcn", verdict="matched")
    assert page.run("return location.hash") == "#?paper=gcn&verdict=matched"
    found = page.run("return document.querySelector('#found').textContent")
    assert found.startswith(f"{len(wanted(paper='gcn', verdict='matched'))} of {len(claims)} claims in 1 paper")
    assert set(choose(page, paper="", verdict="", reach="gated")) == wanted(reach="gated")
    group = set(choose(page, reach="", verdict="agrees"))
    assert group == {n for n, c in claims.items() if c["verdict"] in ("matched", "exact", "holds", "beaten")}
    ran = set(choose(page, verdict="", device="0"))
    assert ran
    assert all(claims[name]["n"] for name in ran)
    assert choose(page, device="", q="no such word anywhere") == []
    assert page.run("return document.querySelector('#none').checkVisibility()")
    page.run("document.querySelector('#clear').click()")
    assert len(choose(page)) == len(claims)
    assert set(choose(page, q="resnet/table6 parameters")) >= {
        name for name, claim in claims.items() if name.startswith("resnet/table6") and "parameters" in claim["metric"]
    }


def test_filters_come_back_from_the_address(page: Page, claims: dict) -> None:
    page.open("?paper=lstm&verdict=holds")
    wanted = {name for name, claim in claims.items() if claim["paper"] == "lstm" and claim["verdict"] == "holds"}
    assert wanted
    assert set(page.rows()) == wanted


def test_a_tile_shows_its_claims(page: Page) -> None:
    page.run("document.querySelector('.tile[data-group=differs]').click()")
    kinds = page.run("return [...document.querySelectorAll('.row:not([hidden])')].map(row => row.dataset.k)")
    assert kinds
    assert set(kinds) <= {"short", "fails", "off"}


@pytest.mark.parametrize(("by", "cell"), [("n", "n"), ("cost", "seconds")])
def test_sorting(page: Page, claims: dict, by: str, cell: str) -> None:
    choose(page, paper="gcn", sort=by)
    shown = [claims[name][cell] for name in page.rows() if claims[name]["n"]]
    assert shown == sorted(shown, reverse=by == "n")


def test_deep_links_open_their_claim(page: Page, claims: dict) -> None:
    for name in list(claims)[::40]:
        page.run("location.hash = arguments[0]", name)
        page.driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
        top, inside, command = page.run(
            """const row = document.getElementById(arguments[0]), next = row.nextElementSibling;
               return [row.getBoundingClientRect().top, row.checkVisibility() && next.classList.contains("detail"),
                       next.querySelector(".cmd code").textContent]""",
            name,
        )
        assert inside, name
        assert -1 <= top < 800, name
        assert command == claims[name]["command"]
    place = page.run("return document.querySelector('figure[id]').id")
    page.open(place)
    assert page.run("return document.querySelector('.paper[open]').id") == place.partition(":")[0]
    assert page.run("return document.getElementById(arguments[0]).checkVisibility()", place)
    page.open("no/such/claim")
    assert "no/such/claim" in page.run("return document.querySelector('#found').textContent")


def test_a_claim_shows_seeds_curves_cost_and_a_command_that_is_copied(page: Page, claims: dict) -> None:
    page.open(CLAIM)
    text = page.run("return document.querySelector('.detail').innerText")
    for said in ("test_accuracy", "of 100 asked", "95 %", "dashed: reported", "seeds drawn", "commit"):
        assert said in text
    assert page.run("return document.querySelectorAll('.detail svg .dot').length") > 3
    assert page.run("return document.querySelectorAll('.detail svg .curve').length") > 3
    page.run("document.querySelector('.detail .cmd button').click()")
    page.driver.execute_async_script("setTimeout(arguments[0], 100)")
    assert page.run("return document.querySelector('.detail .cmd button').textContent") == "Copied"


def test_the_keyboard_is_enough(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.press(Keys.TAB)
    assert page.run("return document.activeElement.className") == "skip"
    page.press(Keys.ENTER)
    assert page.run("return document.activeElement.parentElement.className") == "paper"
    page.run("document.querySelector('#gcn > summary').focus()")
    page.press(Keys.ENTER)
    page.run("document.querySelector('#gcn .open').focus()")
    first = page.run("return document.activeElement.closest('.row').id")
    page.press(Keys.ENTER)
    assert page.run("return document.activeElement.getAttribute('aria-expanded')") == "true"
    page.press(Keys.ESCAPE)
    assert page.run("return document.activeElement.getAttribute('aria-expanded')") == "false"
    page.press(Keys.ARROW_DOWN)
    assert page.run("return document.activeElement.closest('.row').id") != first
    page.press(Keys.ARROW_UP)
    assert page.run("return document.activeElement.closest('.row').id") == first
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_dots_of_the_scatter_lead_to_their_rows(page: Page) -> None:
    page.open("scatter")
    dots = page.run("return [...document.querySelectorAll('#plot-log [data-id], #plot-gap [data-id]')].length")
    assert dots > 100
    name = page.run(
        """const dot = document.querySelector('#plot-gap [data-id]');
           dot.dispatchEvent(new MouseEvent('click', {bubbles: true})); return dot.dataset.id"""
    )
    page.driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert page.run("return document.querySelector('.row.at').id") == name


def test_prices_are_the_readers_own(page: Page) -> None:
    page.open("next")
    before = page.run("return document.querySelector('#plot-next figcaption').textContent")
    page.run(
        """for (const price of document.querySelectorAll('.prices input')) price.value = 1000;
           document.querySelector('.prices input').dispatchEvent(new Event('input', {bubbles: true}))"""
    )
    assert page.run("return document.querySelector('#plot-next figcaption').textContent") != before


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(alone: Path, width: int) -> None:
    with opened(alone, width, 844) as page:
        for place in [*VIEWS, CLAIM, PICTURED, "ntm"]:
            page.open(place)
            assert page.run("return document.documentElement.scrollWidth") <= width, place


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing(alone: Path, dark: bool, width: int) -> None:
    with opened(alone, width, 844, dark) as page:
        for place in [*VIEWS, CLAIM, PICTURED, "lstm/table9/6a"]:
            page.open(place)
            assert page.axe() == [], place


def test_all_views_are_printed(page: Page) -> None:
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        seen = page.run("return [...document.querySelectorAll('.view')].filter(v => v.checkVisibility()).length")
        assert seen == len(VIEWS)
        assert not page.run("return document.querySelector('#filters').checkVisibility()")
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
