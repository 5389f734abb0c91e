"""The report of the smoke experiment, seen by a real browser."""

import json

import pandas as pd
import pytest
from check_report import CHROMIUM, check_report
from project import run_smoke, snakemake
from test_workflow import PLOTS

from streamlm.summaries.answer import answer_sentences

TEXTS = ("README of this project", "Makefile of this project")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of the smoke experiment, a report among them."""
    place = run_smoke(tmp_path_factory.getbasetemp())
    sheet = ["--report-stylesheet", "workflow/report/report.css"]
    done = snakemake(place, "--report", "results/smoke/report.html", *sheet)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "results" / "smoke"


@pytest.fixture(scope="module")
def seen(results, tmp_path_factory):
    shown, faults = check_report(results / "report.html", tmp_path_factory.mktemp("pictures"))
    assert faults == []
    return shown


def test_every_figure_is_shown_with_what_to_see_and_what_it_was_measured_on(seen):
    assert len(seen["Figures"]) == len(PLOTS)
    for label, shown in seen["Figures"].items():
        assert shown["width"] > 1000, label
        for words in ("What to see", "Measured with tiny untrained Llama", "README of this project"):
            assert words in shown["caption"], label


def test_every_table_sorts_and_can_be_taken_away(seen, results):
    files = dict.fromkeys(("page", "CSV", "LaTeX"), 0)
    for label, shown in seen["Tables"].items():
        files[label.split()[-1]] += 1
        if "rows" in shown:
            keys = [float(key) if key else float("inf") for key in shown["sorted"]]
            assert keys == sorted(keys), label
            assert len(keys) == shown["rows"]
        else:
            assert shown["file"].startswith("data:"), label
    assert set(files.values()) == {len(PLOTS)}
    assert len(pd.read_csv(results / "tables" / "main_comparison.csv")) == 8


def test_front_page_opens_on_the_answer_with_the_configuration_folded_away(seen, results):
    shown = " ".join(seen["description"].split())
    found = [
        json.loads(path.read_text()) for path in sorted((results / "streaming_llm").glob("*_result.json"))
    ]
    sentences = answer_sentences([next(one for one in found if one["dataset"] == name) for name in TEXTS])
    assert shown.startswith(f"What sinks + window lose and save {' '.join(sentences)}")
    assert "perplexity after eviction" in shown
    assert seen["pictures"] == [pytest.approx(2070, abs=100)]
    assert '"window_size": 28' not in shown
    assert '"window_size": 28' in seen["unfolded"]
