"""A real browser opens the page: it works as a reader would use it, and it asks the network for nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from headless_browser import CHROMIUM, Browser
from sample_records import BUILT, COMPARED, change, found

from gr00t_trt.record.files import write_record
from gr00t_trt.record.result import REQUEST
from gr00t_trt.report.program import main
from gr00t_trt.report.views import WHOLE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

HOSTILE = (
    """</title></script></style><script>document.title="owned"</script><img src=x onerror=document.title="owned">"""
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both records on one page, with hostile text wherever a stranger could have put it."""
    folder, compared, built = tmp_path_factory.mktemp("page"), copy.deepcopy(COMPARED), copy.deepcopy(BUILT)
    compared.inputs, compared.command = replace(compared.inputs, instruction=HOSTILE), HOSTILE
    change(compared, compared.of("comparison")[0], notes=(HOSTILE,))
    change(compared, compared.measured[3], name=HOSTILE)
    records = {"compared": compared, "built": built}
    paths = [write_record(record, folder / f"{name}.json") for name, record in records.items()]
    output = folder / "report.html"
    assert main([*map(str, paths), "--output", str(output), "--title", "Which board? <b>"]) == 0
    return output


@pytest.fixture
def page(browser, written):
    browser.resize(1400, 1000)
    browser.open(written)
    return browser, written


def test_it_loads_nothing_and_complains_of_nothing(page) -> None:
    browser, output = page
    assert browser.evaluate("document.title") == "Which board? <b>"
    assert browser.requests == [output.as_uri()]
    assert browser.complaints == []
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.images.length") == 0


def test_its_security_policy_stops_what_the_page_did_not_bring(page) -> None:
    browser, _ = page
    browser.evaluate("""
        const own = document.createElement("script"); own.textContent = "document.title = 'owned'";
        document.body.append(own); 0""")
    assert browser.evaluate("document.title") == "Which board? <b>"


def test_the_cells_hold_the_numbers_of_the_record(page, compared) -> None:
    browser, _ = page
    cells = browser.evaluate("""
        [...document.querySelectorAll("#tables table")].slice(0, 2).flatMap((table) => [...table.tBodies[0].rows]).map(
            (row) => [...row.cells].map((cell) => [cell.textContent, cell.dataset.value, cell.title]))""")
    shown = {(row[0][0], row[1][0]): row for row in cells if row[2][0] == "#1"}
    results = compared.of("comparison")
    assert len(shown) == len(results)
    for result in results:
        label = " ".join(part for part in (result.name, result.candidate.precision) if part)
        row = shown[WHOLE if result.subject == REQUEST else result.subject, label]
        if result.latency_ms is None:
            assert [cell[0] for cell in row[3:6]] == ["–"] * 3
            assert "tensorrt is not installed" in row[-1][0]
        else:
            for place, name in ((3, "p50"), (4, "p90"), (5, "p99")):
                value = getattr(result.latency_ms, name)
                assert float(row[place][1]) == value
                assert float(row[place][2]) == pytest.approx(value, abs=1e-6)


def test_pointing_at_a_bar_and_moving_the_focus_to_it_show_the_exact_figures(page, compared) -> None:
    browser, _ = page
    whole = found(compared, "eager", REQUEST)
    script = """
        const mark = document.querySelector(".row .track[tabindex]");
        {}
        const tip = document.getElementById("tip");
        [tip.hidden, tip.textContent].join("|")"""
    for event in (
        "mark.focus();",
        'mark.dispatchEvent(new PointerEvent("pointerover", {bubbles: true, clientX: 400}));',
    ):
        hidden, text = browser.evaluate("{" + script.replace("{}", event) + "}").split("|")
        assert hidden == "false"
        assert f"p50 {whole.latency_ms.p50:.6f} ms" in text
        assert "120 samples after 5 warm-ups by cuda_event" in text
    assert browser.evaluate("document.querySelectorAll('svg title').length") == 0


def test_a_heading_sorts_by_number_and_leaves_dashes_at_the_end(page) -> None:
    browser, _ = page
    column = """
        [...document.querySelectorAll("#tables table")[1].tBodies[0].rows].map((row) => row.cells[3].textContent)"""
    click = 'document.querySelectorAll("#tables table")[1].querySelectorAll("th button")[3].click(); '
    up, down = browser.evaluate(click + column), browser.evaluate(click + column)
    values = [[float(text.replace("\u00a0", "")) for text in side if text != "–"] for side in (up, down)]
    assert values[0] == sorted(values[0]) == values[1][::-1]
    assert len(set(values[0])) > 20
    for side, known in zip((up, down), values, strict=True):
        assert set(side[len(known) :]) == {"–"}


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_it_fits_every_width_in_the_light_and_in_the_dark(page, width) -> None:
    browser, _ = page
    browser.resize(width, 900)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # Only tables may be wider than the page, and they scroll on their own.
    assert browser.evaluate("""[...document.querySelectorAll("main svg")].every(
        (picture) => picture.getBoundingClientRect().right <= innerWidth)""")
    pictures = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        pictures.append((browser.evaluate("getComputedStyle(document.body).backgroundColor"), browser.picture()))
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert pictures[0][0] == "rgb(255, 255, 255)" != pictures[1][0]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for _, picture in pictures)


@pytest.mark.parametrize("width", [390, 1400])
def test_a_measuring_run_fits_a_phone_and_a_desk(browser, measured, tmp_path, width) -> None:
    write_record(measured, tmp_path / "measured.json")
    assert main([str(tmp_path / "measured.json"), "--output", str(tmp_path / "report.html")]) == 0
    browser.resize(width, 900)
    browser.open(tmp_path / "report.html")
    assert browser.complaints == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    over = browser.evaluate("""
        [...document.querySelectorAll(".row")].filter((row) => {
            const [label, value] = [".label", ".value"].map((part) => row.querySelector(part)?.getBoundingClientRect());
            return label && value && label.width && label.right > value.left + 0.5 && label.bottom > value.top + 0.5
                && value.bottom > label.top + 0.5 || value && value.right > innerWidth;
        }).map((row) => row.textContent)""")
    assert over == []
    covered = browser.evaluate("""(() => {
        const boxes = (what) => [...document.querySelectorAll(what)].map((one) => one.getBoundingClientRect());
        const dots = boxes(".plane .dot"), texts = boxes(".plane text:not(.letter)");
        const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
        return dots.flatMap((dot, i) => [...texts, ...dots.slice(i + 1)].filter((other) => meet(dot, other))).length;
    })()""")
    assert covered == 0  # no letter by another, and no label by a letter
    answer = browser.evaluate("document.querySelector('.figures').getBoundingClientRect().bottom")
    assert answer < 900  # the answer and its figures, before anyone scrolls


def test_nothing_moves_when_the_pointer_does(page) -> None:
    browser, _ = page
    height = "document.documentElement.scrollHeight"
    before = browser.evaluate(height)
    browser.evaluate(
        """for (const mark of document.querySelectorAll(".track[tabindex], .part, .dot")) mark.focus(); 0"""
    )
    assert browser.evaluate(height) == before
    assert browser.complaints == []


def test_the_script_is_whole(page) -> None:
    browser, output = page
    text = Path(output).read_text(encoding="utf-8")
    assert "\ufffd" not in text
    assert browser.evaluate("document.characterSet") == "UTF-8"
