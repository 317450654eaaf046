"""The report's page in a real browser: it is drawn, quiet, alone, filtered, typed into, and fits small windows."""

import re
from collections.abc import Iterator

import pytest

from pipeline.reporting import page
from tests import report_facts as made
from tests.browser import NAMES, Browser, browser, program

DRAWN = "document.documentElement.dataset.drawn !== undefined"
SHOWN = "[...document.querySelectorAll('#results tr[data-task][data-variant]')].filter(row => row.offsetParent).map(row => row.dataset.task + ' ' + row.dataset.variant)"  # noqa: E501
VARIANTS = ("dense", "sparse", "int8", "int8_sparse")

pytestmark = pytest.mark.skipif(
    program() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the PATH (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with a task of classes and one of numbers, whose texts are markup that would run."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    tasks = [made.measured("classes"), made.measured("numbers", "regression", variants=VARIANTS[:3])]
    known = made.facts(*tasks, title=f"A title {made.ATTACK}")
    path.write_text(page.render(known, made.curves("classes", "numbers")), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def tab(running: Browser, url: str) -> Browser:
    """The page, drawn, in a wide window."""
    running.open(url)
    running.wait(DRAWN)
    return running


def click(tab: Browser, selector: str) -> None:
    tab.evaluate(f"document.querySelector({selector!r}).click()")


def count(tab: Browser, selector: str) -> int:
    """How many of these a reader can see."""
    return tab.evaluate(f"[...document.querySelectorAll({selector!r})].filter(one => one.getClientRects().length).length")


def test_it_is_quiet_and_alone_and_runs_no_text(tab, url):
    told = [event for event in tab.events if event["method"] in ("Runtime.consoleAPICalled", "Log.entryAdded")]
    told += [event for event in tab.events if event["method"] == "Runtime.exceptionThrown"]
    assert told == []
    asked = [event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    assert [address for address in asked if not address.startswith("data:")] == [url]
    assert tab.evaluate("window.hurt") is None
    assert made.ATTACK.split("\u2028")[0] in tab.evaluate("document.querySelector('#answers td.text').textContent")


def test_every_plot_is_drawn_with_marks(tab):
    places = tab.evaluate("document.querySelectorAll('.plot').length")
    assert places >= 20
    assert tab.evaluate("document.documentElement.dataset.drawn") == str(places)
    marks = (
        "[...document.querySelectorAll('.plot')].map(place => place.querySelectorAll('svg [role=graphics-symbol]').length)"
    )
    assert min(tab.evaluate(marks)) >= 1
    wide = "[...document.querySelectorAll('.plot svg')].every(svg => svg.getBoundingClientRect().width > 100)"
    assert tab.evaluate(wide)


def test_filters_change_the_tables_and_the_plots(tab):
    every = [f"classes {variant}" for variant in VARIANTS] + [f"numbers {variant}" for variant in VARIANTS[:3]]
    assert tab.evaluate(SHOWN) == every
    assert tab.evaluate("document.getElementById('shown').textContent") == "7 models shown"
    bars = "#speed [data-task=classes] .plot [role=graphics-symbol][aria-roledescription=bar]"
    before, matrices = count(tab, bars), count(tab, "#answers figure")
    click(tab, "input[name=variant][value=sparse]")
    assert tab.evaluate(SHOWN) == [row for row in every if not row.endswith(" sparse")]
    tab.wait(f"document.querySelectorAll('{bars}').length < {before}")
    assert count(tab, bars) == before * 3 // 4
    assert count(tab, "#answers figure") == matrices - 1 == 3
    click(tab, "input[name=task][value=classes]")
    assert tab.evaluate(SHOWN) == ["numbers dense", "numbers int8"]
    assert tab.evaluate("document.getElementById('shown').textContent") == "2 models shown"
    assert count(tab, "[data-task=classes]") == 0
    click(tab, "input[name=task][value=classes]")
    click(tab, "input[name=variant][value=sparse]")
    assert tab.evaluate(SHOWN) == every
    tab.wait(f"document.querySelectorAll('{bars}').length === {before}")


def test_the_numbers_of_a_plot_open_as_a_table(tab):
    click(tab, "#trade-offs details summary")
    tab.wait("document.querySelector('#trade-offs details table')")
    heads = tab.evaluate("[...document.querySelectorAll('#trade-offs details th')].map(cell => cell.textContent)")
    assert heads == ["shown", "cost", "score", "score low", "score high", "front", "dominated"]
    assert count(tab, "#trade-offs details tbody tr") == 4


def test_everything_is_reached_by_the_keyboard_in_the_order_of_the_page(tab):
    def focused() -> str:
        return tab.evaluate("(e => e.value || e.textContent.trim())(document.activeElement)")

    seen = []
    for _ in range(18):
        tab.press("Tab", 9)
        seen.append(focused())
    assert seen[0] == "Skip to the results"
    sections = [name for _, name in page.SECTIONS]
    assert seen[1:10] == sections
    assert seen[10:17] == ["classes", "numbers", *VARIANTS, "auto"]
    ring = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring != "none"
    tab.evaluate("document.querySelector('input[name=variant][value=dense]').focus()")
    tab.press(" ", 32, " ")
    assert "classes dense" not in tab.evaluate(SHOWN)
    tab.evaluate("document.querySelector('.skip').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.evaluate("document.activeElement.id") == "main"


def colours(tab: Browser) -> tuple[int, str]:
    """How bright the page is, and the colour of a curve."""
    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    line = tab.evaluate("document.querySelector('#training .plot path[role=graphics-symbol]').getAttribute('stroke')")
    return sum(map(int, re.findall(r"\d+", back))), line


def test_dark_and_light_are_those_of_the_system_or_the_readers(running, url):
    running.open(url, dark=True)
    running.wait(DRAWN)
    dark = colours(running)
    assert dark[0] < 150
    for value, bright in (("light", True), ("dark", False)):
        running.evaluate(
            f"(s => {{ s.value = {value!r}; s.dispatchEvent(new Event('change')); }})(document.getElementById('theme'))"
        )
        running.wait(DRAWN)
        found = colours(running)
        assert (found[0] > 600) == bright
        assert (found[1] != dark[1]) == bright, "plots are drawn anew"


@pytest.mark.parametrize("width", [400, 760, 1600])
def test_no_window_needs_to_be_scrolled_sideways(running, url, width, tmp_path):
    running.open(url, width=width)
    running.wait(DRAWN)
    assert running.evaluate("document.documentElement.scrollWidth") == width
    assert running.evaluate(
        "[...document.querySelectorAll('.plot svg')].every(s => s.getBoundingClientRect().right <= innerWidth)"
    )
    running.screenshot(tmp_path / "page.png", height=600)
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
