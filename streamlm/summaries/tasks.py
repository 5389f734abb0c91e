"""The rows of StreamEval and of retrieval, and what they say of the model."""

from collections.abc import Callable, Mapping, Sequence

from streamlm.config import METHODS
from streamlm.records.types import Record
from streamlm.summaries.main import kept_text
from streamlm.summaries.tables import Row, mib, percent, spread

ABLE = 0.5  # share of answers with everything kept, below which nothing is said of what a cache loses


def case_name(row: Record) -> str:
    """Return the name of the method or press of a row."""
    method = METHODS.get(row["method"])
    return row["method"] if method is None else method.title


def is_press(row: Record) -> bool:
    """Return whether a row is of a press."""
    return row["method"] not in METHODS


def stream_eval_rows(records: Sequence[Record]) -> list[Row]:
    """Return the share of right answers by what is kept and by distance."""
    return [
        _names(row) | {"lines_back": at["distance"], "back_tokens": at["tokens_back"]} | _shares(at)
        for record in records
        for row in record["rows"]
        for at in row["distances"]
    ]


def retrieval_rows(records: Sequence[Record]) -> list[Row]:
    """Return the share of right answers by task and by what is kept."""
    return [
        {"task": at["task"], "text_tokens": at["tokens"]} | _names(row) | _shares(at)
        for record in records
        for row in record["rows"]
        for at in row["tasks"]
    ]


def _names(row: Record) -> Row:
    kept = str(row["capacity"]) if is_press(row) else kept_text(row, METHODS[row["method"]])
    return {"method": case_name(row), "kept": kept}


def _shares(at: Record) -> Row:
    return (
        {"asked": at["asked"]}
        | percent("chosen_percent", at["chosen_share"], at["chosen_interval"])
        | percent("exact_percent", at["exact_share"], at["exact_interval"])
    )


def rates(row: Record) -> list[float]:
    """Return tokens per second in the slowest and in the fastest run of a batch."""
    return [1e3 * row["batch"] / ms for ms in reversed(row["step_ms"]["spread"])]


def batch_rows(records: Sequence[Record]) -> list[Row]:
    """Return speed and bytes of decoding by batch and method."""
    return [
        {"rows": row["batch"], "method": case_name(row), "attended_tokens": row["attended_tokens"]}
        | spread("tokens_per_second", row["tokens_per_sec"], rates(row))
        | {"step_ms": row["step_ms"]["median"], "kv_mib": mib(row["kv_bytes"])}
        for record in records
        for row in record["rows"]
    ]


def beyond_the_model(record: Record, measure: str, key: str) -> list[Record]:
    """Return the entries at which the model fails with everything kept.

    Args:
        record: of `measure_stream_eval`, or of `measure_retrieval`.
        measure: "chosen" or "exact".
        key: "distances", or "tasks".
    """
    (dense,) = (row for row in record["rows"] if row["method"] == "dense")
    return [at for at in dense[key] if at[f"{measure}_share"] < ABLE]


def beyond_notes(
    record: Record, measures: Mapping[str, str], key: str, name: Callable[[Record], str]
) -> list[str]:
    """Return a line for each measure that says where methods are not to be compared.

    Args:
        record: of `measure_stream_eval`, or of `measure_retrieval`.
        measures: "chosen" and "exact", with their titles.
        key: "distances", or "tasks".
        name: names an entry of it.
    """
    return [
        f"{title}: with everything kept the model is right less than half of the time, so that methods are "
        f"not to be compared, {'; '.join(map(name, beyond))}"
        for measure, title in measures.items()
        if (beyond := beyond_the_model(record, measure, key))
    ]


def refusals(record: Record) -> list[str]:
    """Return a line for each press that cannot work on the model."""
    return [f"{press} was not measured: {reason}" for press, reason in record["refused"].items()]
