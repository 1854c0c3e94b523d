"""The report in a real browser: no script errors, no sideways scrolling, both colour schemes, every figure told."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import report_pictures
from browser import browser_problem, opened

from ruyi_rl.report.html import write_report
from tests.report.made_run import EXITS, left, made_run, write_completions

pytestmark = pytest.mark.slow

CONTRAST = """
(() => {
  const part = (x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([red, green, blue]) => 0.2126 * part(red) + 0.7152 * part(green) + 0.0722 * part(blue);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const found = colour(getComputedStyle(element).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const text = colour(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(text), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, element.className + " " + element.textContent.slice(0, 40)];
  }
  return worst;
})()
"""
"""The lowest contrast of a text with what is behind it, by WCAG 2's formula, and where."""
UNTOLD = """
[...document.querySelectorAll("svg, img, canvas")].filter(
  (each) => each.getAttribute("role") !== "img" || !each.getAttribute("aria-label").trim()
).length + [...document.querySelectorAll("figure")].filter((each) => !each.querySelector("figcaption")).length
"""
MARKUP = '<script>document.title="taken"</script>'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if problem := browser_problem():
        pytest.skip(problem)
    run = made_run(tmp_path_factory.mktemp("browser") / "run", steps=700)
    write_completions(
        run / "grpo", EXITS, "after grpo", completion='<script>document.title="taken"</script>' + "x" * 3000
    )
    with opened(write_report(run)) as page:
        yield page


@pytest.mark.parametrize("width", [390, 1440])
def test_it_looks_right(page, width):
    backgrounds = {}
    for scheme in ("light", "dark"):
        page.show(width, scheme)
        page.driver.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
        assert page.complaints() == [] and page.ask("document.title") == "made · ruyi_rl"
        assert page.ask("document.documentElement.scrollWidth") <= width
        assert page.ask("document.querySelectorAll('svg').length") > 12 and page.ask(UNTOLD) == 0
        ratio, where = page.ask(CONTRAST)
        assert ratio >= 4.5, where
        backgrounds[scheme] = page.ask("getComputedStyle(document.body).backgroundColor")
        line = "getComputedStyle(document.querySelector('.line.exit-0 .strong')).stroke"
        backgrounds[scheme] += page.ask(line)
    assert backgrounds["light"] != backgrounds["dark"]


def test_switches_and_values_under_the_pointer(page):
    page.show(1440, "light")
    shown = "[...document.querySelectorAll('#curves .exit-1')].filter((e) => e.getBoundingClientRect().width).length"
    assert page.ask(shown) > 3
    page.driver.execute_script("document.querySelectorAll('#toggles input')[1].click()")
    assert page.ask(shown) == 0 and page.ask("document.querySelectorAll('#curves .exit-0:not(.off)').length") > 3
    chart = "document.querySelector('#curves figure svg')"
    box = page.ask(f"(() => {{ const b = {chart}.getBoundingClientRect(); return [b.left, b.top, b.width]; }})()")
    at = f"{{clientX: {box[0] + box[2] / 2}, clientY: {box[1] + 40}, bubbles: true}}"
    page.driver.execute_script(f"{chart}.dispatchEvent(new PointerEvent('pointermove', {at}))")
    told = page.ask("document.querySelector('.hover').textContent")
    assert told.startswith("step ") and "small" in told and "medium" not in told
    assert page.complaints() == []


def test_it_is_whole_without_scripts(page):
    page.show(1440, "light", scripts=False)
    assert page.ask("document.querySelectorAll('#curves polyline.strong').length") > 10
    assert page.ask("document.getElementById('toggles').hidden") is True


def test_the_pictures_of_the_documents_are_small_and_of_the_asked_widths(tmp_path, capsys, monkeypatch):
    if problem := browser_problem():
        pytest.skip(problem)
    run = made_run(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["report_pictures.py", str(run), str(tmp_path / "docs")])
    assert report_pictures.main() == 1 and "stage=report" in capsys.readouterr().err
    write_report(run)
    assert report_pictures.main() == 0
    files = sorted((tmp_path / "docs").iterdir())
    assert [file.name for file in files] == [
        f"report_{name}_{scheme}.png" for name in ("desktop", "phone") for scheme in ("dark", "light")
    ]
    assert all(file.stat().st_size < 200_000 for file in files)
    # Width and height stand in a PNG's first chunk.
    widths = [int.from_bytes(file.read_bytes()[16:20], "big") for file in files]
    assert widths == [1440, 1440, 390, 390] and len({file.read_bytes() for file in files}) == 4


def test_an_empty_run_has_a_page_too(tmp_path):
    if problem := browser_problem():
        pytest.skip(problem)
    left(tmp_path, "init", "running")
    with opened(write_report(tmp_path)) as page:
        page.show(390, "dark")
        assert page.complaints() == [] and page.ask("document.documentElement.scrollWidth") <= 390
