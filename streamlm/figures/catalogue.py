"""The names of the figures, from which the rules, the command `figures`, tables, report and tests are fed.

A figure is one module here that ends in its entry, `FIGURE`, and one line in a list. A module is imported
when it is needed. No figure imports these lists: adding a figure draws no other again.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from streamlm.figures.entry import Figure
from streamlm.summaries.escape import escape_rst

# In the order of a report: what `snakemake all` draws, and what `paper`, `tasks`, `pretraining` do as well.
MAIN_FIGURES = (
    "schemes",
    "main_comparison",
    "results_summary",
    "ablation_window_size",
    "ablation_n_sink",
    "long_stream",
    "decoding_latency",
    "implementation_comparison",
    "press_sweep",
    "comparison_metrics_table",
)
PAPER_FIGURES = ("positions", "methods_along", "attention_maps", "sink_mass", "sink_tokens", "stream_eval")
TASK_FIGURES = ("stream_eval", "retrieval", "batches")
TWIN_FIGURES = ("twin_losses", "twin_sinks", "twin_maps")
FIGURES = tuple(dict.fromkeys(MAIN_FIGURES + PAPER_FIGURES + TASK_FIGURES + TWIN_FIGURES))


def find_figure(name: str) -> Figure:
    """Return the entry of a figure, importing its module.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; known are {', '.join(FIGURES)}")
    figure: Figure = import_module(f"streamlm.figures.{name}").FIGURE
    return figure


def measured_on(config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the titles of the model and of the texts of an experiment, in reStructuredText."""
    experiment = config["experiment"]
    titles = [config["corpora"][corpus]["title"] for corpus in experiment["corpora"]]
    return escape_rst(config["models"][experiment["model"]]["title"]), list(map(escape_rst, titles))


def fill_caption(name: str, config: Mapping[str, Any]) -> str:
    """Return the caption of a figure, in reStructuredText, for the experiment of a config."""
    experiment, comparison = config["experiment"], config["comparison"]
    latency, long = config["decoding_latency"], config["long_stream"]
    model, texts = measured_on(config)
    others = config["paper"]["models"]
    return find_figure(name).caption.format(
        model=model,
        models=" and ".join([model, *(escape_rst(config["models"][name]["title"]) for name in others)]),
        texts=" and ".join(texts),
        first_text=texts[0],
        last_text=texts[-1],
        n_tokens=f"{experiment['max_eval_tokens']:,}",
        capacities=" and ".join(map(str, experiment["sink_ablation"]["capacities"])),
        confidence=f"{100 * config['bootstrap']['confidence']:g}",
        experiment=experiment,
        comparison=comparison,
        latency=latency,
        long=long,
        paper=config["paper"],
        tasks=config["tasks"],
    )
