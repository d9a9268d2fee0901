"""The HTML page in a browser: sorting, filters, tooltips, and no request to the network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmlbench.analysis.records import tidy
from dmlbench.report import drawing, page, plots
from dmlbench.report.render import boards
from dmlbench.storage.cell import Cell
from tests.synthetic import FULL, failed, model

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two data sets: three models, one with an evil name, and a failed cell."""
    evil = "<b id=evil>evil</b>"
    cells = [
        *model(label="HM[S,g_LGA]"),
        *model(FULL | {"CA+": 30.0}, label=evil),
        *model({k: v for k, v in FULL.items() if k != "CA+"}, label="half"),
        failed("CA+", "RuntimeError: odd", label="half"),
        *model({"CA+": 20.0}, dataset="untold"),
    ]
    path = tmp_path_factory.mktemp("page") / "index.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "PLOTS", {"terms": plots.ten_terms, "cost": plots.cost})
        write(path, cells)
    return path


def write(path: Path, cells: list[Cell]) -> None:
    """The page of cells, with its plots."""
    found = boards(tidy(cells), literature=False)
    pictures = drawing.draw(found, path.parent, ("svg",)).pictures
    path.write_text(page.render(found, pictures), encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver to open the page in")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_the_page_names_nothing_to_fetch(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|img|iframe|audio|video|source)[^>]*\ssrc=", text)
    assert re.findall(r"<link [^>]*>", text) == ['<link rel="icon" href="data:,">']
    assert "@import" not in text
    assert "url(http" not in text


def test_ids_are_unique(html: Path) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html.read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


def test_it_sorts_filters_and_explains(html: Path, browser: Any) -> None:
    """One visit: tabs, sort, filter, tooltips by pointer and by keyboard."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    def see(selector: str) -> list[Any]:
        return [e for e in browser.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()]

    def defenses() -> list[str]:
        names: list[str] = browser.execute_script(
            "return [...document.querySelectorAll('#board-tiny tbody tr:not([hidden])')]"
            ".map(row => row.querySelector('.name').textContent)"
        )
        return names

    def tip() -> str:
        return str(see("#tip")[0].text) if see("#tip") else ""

    browser.get(html.as_uri())
    assert [tab.text for tab in see("[role=tab]")] == ["tiny", "untold"]
    evil = "<b id=evil>evil</b>"
    assert defenses() == [evil, "HM[S,gLGA]", "half"]
    assert not see("#evil")

    heads = {head.text: head for head in see("#board-tiny thead button")}
    heads["CA+ ↑"].click()  # the better end first, what has no number last
    assert defenses() == [evil, "HM[S,gLGA]", "half"]
    heads["CA+ ↑"].click()
    assert defenses() == ["HM[S,gLGA]", evil, "half"]
    assert see("#board-tiny th[aria-sort=ascending]")[0].text == "CA+ ↑"
    heads["Defense"].click()
    assert defenses() == [evil, "half", "HM[S,gLGA]"]

    (search,) = see("#board-tiny input[type=search]")
    search.send_keys("HM[ c2f2")
    assert defenses() == ["HM[S,gLGA]"]
    assert see("#board-tiny output")[0].text == "1 of 3 rows"
    search.clear()
    search.send_keys(Keys.SPACE)

    ActionChains(browser).move_to_element(heads["CA+ ↑"]).perform()
    assert "50 is untouched, 0 the top. Higher is better." in tip()
    cell = next(c for c in see("#board-tiny td") if c.text == "30.0")
    ActionChains(browser).move_to_element(cell).perform()
    assert tip().startswith("CA+ 30.0, 95% interval [29.0, 31.0]\nMeasured here, n = 40, seed 0")
    ActionChains(browser).move_to_element(see("#board-tiny tbody .name")[0]).perform()
    assert tip() == "Mean cosine 0.250, effective rank 30.5."
    cell.click()
    assert browser.switch_to.active_element == cell
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)  # by keyboard alone
    assert browser.switch_to.active_element.text == "failed"
    assert "RuntimeError: odd" in tip()
    assert browser.switch_to.active_element.get_attribute("aria-describedby") == "tip"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert tip() == ""

    see("[role=tab]")[0].send_keys(Keys.ARROW_RIGHT)
    assert see("h2")[0].text == "untold"
    assert browser.current_url.endswith("#untold")
    (wide,) = browser.execute_script("return [document.documentElement.scrollWidth]")
    assert wide <= 1400  # tables scroll by themselves, the page does not
    requests = [e["message"] for e in browser.get_log("performance")]
    fetched = [m for m in requests if '"Network.requestWillBeSent"' in m and "http" in m]
    assert not [m for m in fetched if re.search(r'"url":"https?:', m)]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (390, 800)])
def test_the_score_and_recall_stay_in_view_and_a_row_explains_itself(
    html: Path, browser: Any, width: int, height: int
) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(html.as_uri())
        run = browser.execute_script
        run("document.querySelector('[data-columns=all]').click()")
        shown = run(
            "const scroll = document.querySelector('.scroll'); scroll.scrollLeft = 400;"
            "const edge = scroll.getBoundingClientRect();"
            "return [...scroll.querySelectorAll('thead .pin')].filter(head => head.offsetWidth)"
            ".filter(head => { const box = head.getBoundingClientRect();"
            "return box.left >= edge.left && box.right <= edge.right })"
            ".map(head => head.textContent)"
        )
        assert shown[-3:] == ["Defense", "ERS ↑", "R@1 ↑"]
        assert run("return document.documentElement.scrollWidth") <= width
        assert (
            run("return getComputedStyle(document.querySelectorAll('#board-tiny th')[5]).display")
            != "none"
        )
        run("document.querySelector('[data-columns=few]').click()")
        heads = (
            "return [...document.querySelectorAll('#board-tiny thead th')]"
            ".filter(head => head.offsetWidth).map(head => head.textContent)"
        )
        assert "QA+ ↑" not in run(heads)
        assert "CA+ ↑" in run(heads)
        run("document.querySelector('#board-tiny tbody .name button').click()")
        said = run("return document.getElementById('more').innerText")
        assert "<b id=evil>evil</b>" in said
        assert "SHA-256" in said
        run("document.getElementById('more').close()")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_plots_keep_what_tells_measured_from_published_in_the_dark(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filled marker of an undefended model is filled with the colour of its edge."""
    monkeypatch.setattr(plots, "PLOTS", {"tradeoff": plots.tradeoff})
    cells = [*model(label="N/A[R]"), *model(FULL | {"CA+": 30.0}, label="N/A[S]")]
    path = tmp_path / "dark.html"
    write(path, cells)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    try:
        browser.get(path.as_uri())
        fills = browser.execute_script(
            "return [...document.querySelectorAll('figure svg use')].map(one => {"
            "const style = getComputedStyle(one); return [style.fill, style.stroke] })"
        )
        assert any(fill == stroke != "none" for fill, stroke in fills)
        assert not any(
            fill == "rgb(0, 0, 0)" != stroke and stroke != "none" for fill, stroke in fills
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
