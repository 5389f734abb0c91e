"""Read a report as its reader does, in Chromium: `python tests/check_report.py REPORT PICTURES`."""

import sys
from pathlib import Path

from browser import Page

LINKS = "[...document.querySelectorAll('nav a')]"
ROWS = "[...document.querySelectorAll('nav tbody tr')]"
LOCAL = ("file:", "data:", "blob:", "about:")


def check_report(report, pictures):
    """Open every part of a report; return what was shown, and every fault.

    Args:
        report: path of the HTML file.
        pictures: folder for a picture of every view.
    """
    pictures = Path(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    with Page() as page:
        page.open(report)
        page.wait(
            "typeof app !== 'undefined' && !!document.querySelector('#rulegraph svg, #rulegraph canvas')"
        )
        page.picture(pictures / "workflow.png")
        shown = {"description": page.run("document.querySelector('.prose').innerText")}
        _click(page, "Statistics")
        page.wait(
            "document.querySelectorAll('#runtimes svg, #runtimes canvas, #timeline canvas').length >= 2"
        )
        page.picture(pictures / "statistics.png")
        for category in page.run("Object.keys(categories)"):
            shown[category] = _walk(page, category, pictures)
        return shown, _faults(page.events)


def _click(page, text):
    page.wait(f"{LINKS}.some(link => link.innerText.trim() === {text!r})")
    page.run(f"{LINKS}.find(link => link.innerText.trim() === {text!r}).click()")


def _walk(page, category, pictures):
    """Open every result of a category; return its caption and what was seen of it, by its labels."""
    page.run("app.setView({navbarMode: 'menu', category: undefined, subcategory: undefined})")
    _click(page, category)
    seen = {}
    for i in range(page.wait(f"{ROWS}.length")):
        row = f"{ROWS}[{i}]"
        label = page.run(f"[...{row}.cells].slice(0, -1).map(cell => cell.innerText).join(' ')")
        name = f"{category} {label}".replace(" ", "_").replace(".", "").replace(":", "")
        if page.run(f"{row}.querySelector('a').hasAttribute('download')"):
            seen[label] = {
                "file": page.run(f"decodeURIComponent({row}.querySelector('a').href).slice(0, 80)")
            }
        else:
            page.run(f"{row}.querySelector('a').click()")
            seen[label] = _look(page)
            page.picture(pictures / f"{name}.png")
        page.run(f"{row}.querySelectorAll('a')[1].click()")
        seen[label]["caption"] = page.wait("document.querySelector('nav').innerText")
        page.picture(pictures / f"{name}_caption.png")
        page.run(f"app.showCategory({category!r})")
        page.wait(f"{ROWS}.length > {i}")
    return seen


def _look(page):
    """Return the width of the picture on the screen, or the rows of the table, sorted by its last column."""
    page.wait("!!document.querySelector('#app img:not(nav img), #app iframe')")
    if page.run("!document.querySelector('#app iframe')"):
        picture = "document.querySelector('#app img:not(nav img)')"
        return {"width": page.wait(f"{picture}.complete && {picture}.naturalWidth")}
    frame = page.last_frame()
    rows = "[...document.querySelectorAll('tbody tr')]"
    n_rows = page.wait(f"{rows}.length", frame)
    page.run("[...document.querySelectorAll('th')].at(-1).click()", frame)
    return {
        "rows": n_rows,
        "sorted": page.run(f"{rows}.map(row => row.cells[row.cells.length - 1].dataset.value)", frame),
    }


def _faults(events):
    """Return every error that the page reported, and every address that is not on this machine."""
    faults = []
    for event in events:
        method, params = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            faults.append(f"exception: {params['exceptionDetails'].get('exception', params)}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            faults.append(f"console: {params['args']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            faults.append(f"log: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(LOCAL):
            faults.append(f"request: {params['request']['url']}")
    return faults


if __name__ == "__main__":
    shown, faults = check_report(*sys.argv[1:])
    for category, seen in shown.items():
        print(f"{category}: {len(seen)} {'letters' if isinstance(seen, str) else 'shown'}")
    sys.exit("\n".join(faults))
