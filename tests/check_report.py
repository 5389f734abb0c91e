"""Read a report as its reader does, in Chromium: `python tests/check_report.py REPORT PICTURES`."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage")
PATIENCE_MS = 600_000  # for any answer: drawn in software, on a busy machine, a picture takes minutes
LINKS = "[...document.querySelectorAll('nav a')]"
ROWS = "[...document.querySelectorAll('nav tbody tr')]"
LOCAL = ("file:", "data:", "blob:", "about:")


def check_report(report, pictures):
    """Open every part of a report; return what was shown, and every fault.

    A fault is an error that the page reports, or a request to an address that is not on this machine.

    Args:
        report: path of the HTML file.
        pictures: folder for a picture of every view.
    """
    pictures = Path(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(PATIENCE_MS)
        faults = _collect_faults(page)
        page.goto(Path(report).resolve().as_uri())
        _wait(
            page,
            "typeof app !== 'undefined' && !!document.querySelector('#rulegraph svg, #rulegraph canvas')",
        )
        page.screenshot(path=pictures / "workflow.png")
        shown = {"description": page.evaluate("document.querySelector('.prose').innerText")}
        page.evaluate("document.querySelector('.prose details').open = true")
        shown["unfolded"] = page.evaluate("document.querySelector('.prose').innerText")
        shown["pictures"] = page.evaluate(
            "[...document.querySelectorAll('.prose img')].map(image => image.naturalWidth)"
        )
        _click(page, "Statistics")
        _wait(
            page, "document.querySelectorAll('#runtimes svg, #runtimes canvas, #timeline canvas').length >= 2"
        )
        page.screenshot(path=pictures / "statistics.png")
        for category in page.evaluate("Object.keys(categories)"):
            shown[category] = _walk(page, category, pictures)
        return shown, faults


def _collect_faults(page):
    """Return a list that grows by every fault of the page."""
    faults = []

    def note(event):
        if event.type in ("error", "assert"):
            faults.append(f"console: {event.text}")

    def look(request):
        if not request.url.startswith(LOCAL):
            faults.append(f"request: {request.url}")

    page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
    page.on("console", note)
    page.on("request", look)
    return faults


def _wait(frame, code):
    """Return the value of a JavaScript expression as soon as it is true."""
    return frame.wait_for_function(code).json_value()


def _click(page, text):
    _wait(page, f"{LINKS}.some(link => link.innerText.trim() === {text!r})")
    page.evaluate(f"{LINKS}.find(link => link.innerText.trim() === {text!r}).click()")


def _walk(page, category, pictures):
    """Open every result of a category; return its caption and what was seen of it, by its labels."""
    page.evaluate("app.setView({navbarMode: 'menu', category: undefined, subcategory: undefined})")
    _click(page, category)
    seen = {}
    for i in range(_wait(page, f"{ROWS}.length")):
        row = f"{ROWS}[{i}]"
        label = page.evaluate(f"[...{row}.cells].slice(0, -1).map(cell => cell.innerText).join(' ')")
        name = f"{category} {label}".replace(" ", "_").replace(".", "").replace(":", "")
        if page.evaluate(f"{row}.querySelector('a').hasAttribute('download')"):
            seen[label] = {
                "file": page.evaluate(f"decodeURIComponent({row}.querySelector('a').href).slice(0, 80)")
            }
        else:
            page.evaluate(f"{row}.querySelector('a').click()")
            seen[label] = _look(page)
            page.screenshot(path=pictures / f"{name}.png")
        page.evaluate(f"{row}.querySelectorAll('a')[1].click()")
        seen[label]["caption"] = _wait(page, "document.querySelector('nav').innerText")
        page.screenshot(path=pictures / f"{name}_caption.png")
        page.evaluate(f"app.showCategory({category!r})")
        _wait(page, f"{ROWS}.length > {i}")
    return seen


def _look(page):
    """Return the width of the picture on the screen, or the rows of the table, sorted by its last column."""
    _wait(page, "!!document.querySelector('#app img:not(nav img), #app iframe')")
    if page.evaluate("!document.querySelector('#app iframe')"):
        picture = "document.querySelector('#app img:not(nav img)')"
        return {"width": _wait(page, f"{picture}.complete && {picture}.naturalWidth")}
    frame = page.query_selector("#app iframe").content_frame()
    rows = "[...document.querySelectorAll('tbody tr')]"
    n_rows = _wait(frame, f"{rows}.length")
    frame.evaluate("[...document.querySelectorAll('th')].at(-1).click()")
    sorted_by = f"{rows}.map(row => row.cells[row.cells.length - 1].dataset.value)"
    return {"rows": n_rows, "sorted": frame.evaluate(sorted_by)}


if __name__ == "__main__":
    shown, faults = check_report(*sys.argv[1:])
    for category, seen in shown.items():
        print(f"{category}: {len(seen)} {'letters' if isinstance(seen, str) else 'shown'}")
    sys.exit("\n".join(faults))
