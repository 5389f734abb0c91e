"""The entry of a figure: its names and caption, the records it takes, how it is drawn, its table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlm.config import ROLES
from streamlm.records.fields import check_record
from streamlm.records.files import read_record
from streamlm.records.types import ComparisonRecord, LatencyRecord, Record, ResultRecord
from streamlm.summaries.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture


@dataclass(frozen=True)
class Records:
    """Which records a figure takes.

    Args:
        pattern: of their paths in a results folder; in the rules {corpus} is every text of the experiment.
        record_type: the TypedDict of their fields.
        before: pattern of latency records that are taken first, sorted by capacity and sinks.
        of_models: whether those of every model of the experiment are taken, each in its results folder.
    """

    pattern: str
    record_type: Any
    before: str = ""
    of_models: bool = False

    def read(self, results_dir: Path) -> list[Record]:
        """Return the records in a results folder, of the packaged texts first; none if they are missing.

        Raises:
            ValueError: if a record is of another version of streamlm.
        """
        folders = [results_dir, *sorted(results_dir.glob("models/*"))] if self.of_models else [results_dir]
        pattern = self.pattern.format(corpus="*")
        paths = [path for folder in folders for path in sorted(folder.glob(pattern), key=_text_order)]
        records = [read_record(path) for path in paths]
        for path, record in zip(paths, records, strict=True):
            check_record(record, self.record_type, str(path))
        if not records or not self.before:
            return records
        others = [read_record(path) for path in results_dir.glob(self.before)]
        for record in others:
            check_record(record, LatencyRecord, f"one of {self.before}")
        return sorted(others, key=lambda record: (record["capacity"], record["n_sink"])) + records


def _text_order(path: Path) -> tuple[int, str]:
    role = path.name.partition("_")[0]
    return (list(ROLES).index(role) if role in ROLES else len(ROLES)), path.name


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
