"""The figures: what each is called and says, the records it takes, how it is drawn, the rows of its table.

A figure is one module here that ends in its entry, `FIGURE`, and one line in `FIGURES`; the rules, the
command `figures`, tables, report and tests are fed from them. A module is imported when it is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlm.config import ROLES
from streamlm.records.files import read_record
from streamlm.records.types import ComparisonRecord, Record, ResultRecord, check_record
from streamlm.summaries.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

# In the order of a report.
FIGURES = (
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


@dataclass(frozen=True)
class Records:
    """Which records a figure takes.

    Args:
        pattern: of their paths in a results folder; in the rules {corpus} is every text of the experiment.
        record_type: the TypedDict of their fields.
        before: pattern of others that are taken first, sorted by capacity and sinks.
    """

    pattern: str
    record_type: Any
    before: str = ""

    def read(self, results_dir: Path) -> list[Record]:
        """Return the records in a results folder, of the packaged texts first; none if they are missing.

        Raises:
            ValueError: if a record is of another version of streamlm.
        """
        paths = sorted(results_dir.glob(self.pattern.format(corpus="*")), key=_text_order)
        records = [read_record(path) for path in paths]
        for path, record in zip(paths, records, strict=True):
            check_record(record, self.record_type, str(path))
        if not records or not self.before:
            return records
        others = [read_record(path) for path in results_dir.glob(self.before)]
        return sorted(others, key=lambda record: (record["capacity"], record["n_sink"])) + records


def _text_order(path: Path) -> tuple[int, str]:
    role = path.name.partition("_")[0]
    return (ROLES.index(role) if role in ROLES else len(ROLES)), path.name


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure and its table."""

    title: str  # of the table, and in the report
    short_title: str  # in the contents of the report
    caption: str  # what to see; {numbers} are filled in by `fill_caption`
    records: Records
    plot: Callable[[Sequence[Record]], "Picture"]
    rows: Callable[[Sequence[Record]], list[Row]]


RESULTS = Records("streaming_llm/{corpus}_result.json", ResultRecord)  # of each text
COMPARISONS = Records("kvpress/{corpus}_comparison.json", ComparisonRecord)  # likewise


def find_figure(name: str) -> Figure:
    """Return the entry of a figure, importing its module.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; known are {', '.join(FIGURES)}")
    figure: Figure = import_module(f"streamlm.figures.{name}").FIGURE
    return figure


def fill_caption(name: str, config: Mapping[str, Any]) -> str:
    """Return the caption of a figure, in reStructuredText, for the experiment of a config."""
    experiment, comparison = config["experiment"], config["comparison"]
    latency, long = config["decoding_latency"], config["long_stream"]
    corpora = [config["corpora"][corpus]["title"] for corpus in experiment["corpora"]]
    return find_figure(name).caption.format(
        model=config["models"][experiment["model"]]["title"],
        texts=" and ".join(corpora),
        first_text=corpora[0],
        n_tokens=f"{experiment['max_eval_tokens']:,}",
        capacities=" and ".join(map(str, experiment["sink_ablation"]["capacities"])),
        confidence=f"{100 * config['bootstrap']['confidence']:g}",
        experiment=experiment,
        comparison=comparison,
        latency=latency,
        long=long,
    )
