"""Names and titles of strangers are shown letter by letter, in every format."""

import html
import json
import re
from types import SimpleNamespace

import docutils.core
import jinja2
import pytest
import test_latency
from changed_config import CONFIG, changed, report
from matplotlib.text import Text
from project import ROOT
from test_figures import ablate, measure, results  # noqa: F401
from test_long_stream import long_runs, streams  # noqa: F401
from test_press_figures import comparisons, measured  # noqa: F401
from test_tables import balanced
from tiny_model import write_tiny_model

from streamlm.config import Compute, StreamConfig
from streamlm.experiment.check import check_config
from streamlm.figures.catalogue import MAIN_FIGURES, fill_caption, find_figure, measured_on
from streamlm.figures.style import save_figure
from streamlm.figures.table_files import as_csv, write_tables
from streamlm.measure.latency import measure_latency, measure_long_run
from streamlm.measure.open_model import open_model
from streamlm.records.files import read_record, write_json
from streamlm.records.names import check_name
from streamlm.summaries.answer import answer_page, experiment_summary
from streamlm.summaries.escape import escape_latex, escape_texts
from streamlm.summaries.tables import as_markdown


@pytest.mark.parametrize(
    "letter", ["\u2028", "\x85", "\u2029", "\x9b", "\x1b", "\u202e", "\u2066", "\x7f", "\n"]
)
def test_title_with_a_character_that_steers_is_refused_wherever_it_comes_from(letter, tmp_path):
    title = f"A{letter}{letter}.. raw:: html"
    for key in ("models/smollm2-135m-instruct/title", "corpora/pg19/title"):
        (line,) = report(changed(CONFIG, {key: title}))
        assert line.startswith(key.replace("/", "."))
        assert letter not in line
    with pytest.raises(ValueError, match="take it out") as caught:
        check_name(title, "the model")
    assert letter not in str(caught.value)
    if letter != "\n":
        write_json(tmp_path / "record.json", {"methods": [{title: 1}]})
        with pytest.raises(ValueError, match="has the character"):
            read_record(tmp_path / "record.json")


def test_title_in_a_model_folder_is_checked_when_the_model_is_opened(tmp_path):
    folder = write_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for title, message in (
        ("a\x9b31mb", r"has the character \\x9b"),
        (5, "has no name, but 5"),
        ("a" * 256, "shorten"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"streamlm_title": title}))
        with pytest.raises(ValueError, match=message):
            open_model(folder, Compute(device="cpu", torch_threads=1))


HOSTILE = "costs $x^$ y \\frac <b> & % # _ {"


MARKUP = ["`a <javascript:alert(1)>`_", "*a* |b| `c` [d](e) <f>", "a_ __b__ http://c", "\\", HOSTILE]


@pytest.mark.parametrize("title", MARKUP)
def test_title_is_letters_in_the_report(title):
    title = title.replace("{", "x")
    config = changed(CONFIG, {"models/smollm2-135m-instruct/title": title})
    params = SimpleNamespace(measured_on=measured_on(config), caption=fill_caption("schemes", config))
    for name in ("table", "figure"):
        source = (ROOT / f"workflow/report/{name}.rst").read_text()
        source = source.replace("{{ snakemake.wildcards.figure }}.png_", "it")
        text = jinja2.Template(source).render(snakemake=SimpleNamespace(params=params))
        body = docutils.core.publish_parts(text, writer_name="html")["html_body"]
        assert "<a " not in body and "system-message" not in body
        assert f"Measured with {title} on" in html.unescape(re.sub("<[^>]+>", "", body))


@pytest.mark.parametrize("section", ["models", "corpora"])
def test_title_of_a_formula_is_refused_before_any_job_and_a_price_is_not(section):
    name = next(iter(CONFIG[section]))
    check_config(changed(CONFIG, {f"{section}/{name}/title": "costs 5 $ & more"}))
    with pytest.raises(ValueError, match=rf"{section}\.{name}\.title: .* has two \$"):
        check_config(changed(CONFIG, {f"{section}/{name}/title": "costs $x^$ y"}))


@pytest.mark.parametrize("title", MARKUP)
def test_title_is_letters_in_markdown(title):
    table = as_markdown([{"text": title, "change_percent": -1.5}])
    assert re.search(r"(?<!\\)[`*<]", table) is None
    assert len(re.findall(r"(?<!\\)\|", table.splitlines()[-1])) == 3
    assert "-1.5" in table


def test_cell_that_a_spreadsheet_would_compute_is_text_and_numbers_stay_numbers():
    texts = ["=1+1", "+1", "-a", "@a", "\t=1", " =1", "\uff1d1"]
    cells = as_csv([{"text": text, "change": -1.5} for text in texts]).splitlines()[1:]
    assert [line.strip('"')[0] for line in cells] == ["'"] * len(texts)
    assert all(line.endswith(",-1.5") for line in cells)
    assert "'" not in as_csv([{"text": "4+1020", "change": -2}])


@pytest.fixture(scope="module")
def latencies(tmp_path_factory):
    """Records of decoding, the long run last."""
    options = {
        "model_dir": write_tiny_model(tmp_path_factory.mktemp("latency")),
        "ids": test_latency.IDS,
        "dataset": "English Wikipedia sample",
        "compute": test_latency.COMPUTE,
    }
    timed = [
        record
        for capacity in (16, 32)
        for record in measure_latency(
            **options, capacity=capacity, cases=test_latency.CASES, latency=test_latency.AMOUNTS
        )
    ]
    return [*timed, measure_long_run(**options, cfg=StreamConfig(n_sink=2, window_size=14), tokens=120)]


@pytest.fixture
def records_of(request, results, ablate, streams, latencies):  # noqa: F811
    """A function that returns what a figure takes."""
    texts = [result["dataset"] for result in results]

    def taken(name):
        if name.startswith("ablation"):
            return [ablate(name.removeprefix("ablation_"), texts)]
        pattern = find_figure(name).records.pattern
        return latencies if "latency" in pattern else streams if "long_stream" in pattern else results

    return taken


def renamed(records):
    """Return records in which model and texts have names of markup."""
    names = {str(record[key]) for record in records for key in ("model", "dataset") if key in record}
    names |= {text for record in records if "ablation" in record for text in record["baseline"]}
    hostile = {name: HOSTILE + str(i) for i, name in enumerate(sorted(names))}
    return escape_texts(records, lambda text: hostile.get(text, text))


KVPRESS = ("implementation_comparison", "press_sweep", "comparison_metrics_table")


def assert_shown_as_letters(name, records, folder):
    """Assert that a figure and its tables are made, the names of the records in them letter by letter."""
    figure = find_figure(name)
    picture = figure.plot(records)
    shown = [" ".join(text.get_text().split()) for text in picture.findobj(Text)]
    assert any("$x^$" in text for text in shown)
    for kind in ("png", "pdf"):
        save_figure(folder / f"it.{kind}", picture)
    targets = [folder / f"it.{kind}" for kind in ("csv", "tex", "html")]
    write_tables(figure, name, records, targets)
    _, latex, page = (target.read_text() for target in targets)
    assert balanced(latex) and "<b>" not in page
    assert escape_latex(HOSTILE) in latex


@pytest.mark.parametrize("name", [name for name in MAIN_FIGURES if name not in KVPRESS])
def test_figure_and_tables_take_a_title_of_markup(name, records_of, tmp_path):
    assert_shown_as_letters(name, renamed(records_of(name)), tmp_path)


@pytest.mark.kvpress
@pytest.mark.parametrize("name", KVPRESS)
def test_figure_beside_kvpress_takes_a_title_of_markup(name, comparisons, tmp_path):  # noqa: F811
    assert_shown_as_letters(name, renamed(comparisons), tmp_path)


def test_latex_escapes_what_would_belong_to_the_line_before_it():
    assert escape_latex("costs $x^$ \\frac") == r"costs \$x\textasciicircum{}\$ \textbackslash{}frac"
    assert [escape_latex(text) for text in ("[a", "*a", "a[b")] == ["{}[a", "{}*a", "a[b"]


def test_answer_and_summaries_show_a_title_of_markup_as_letters(results):  # noqa: F811
    records = renamed(results)
    page = answer_page(records, b"")
    assert "<b>" not in page and "&lt;b&gt;" in page
    summary = experiment_summary(records, [])
    assert re.search(r"(?<!\\)<", summary) is None
    assert r"costs \$x^\$ y \\frac \<b\> \& % # \_ {" in summary
