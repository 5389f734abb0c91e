"""The rows of StreamEval, and what they say of the model."""

from collections.abc import Sequence

from streamlm.config import METHODS
from streamlm.records.types import Record
from streamlm.summaries.main import kept_text
from streamlm.summaries.tables import Row, percent

ABLE = 0.5  # share of answers with everything kept, below which nothing is said of what a cache loses


def stream_eval_rows(records: Sequence[Record]) -> list[Row]:
    """Return the share of right answers by what is kept and by distance."""
    return [
        {"method": METHODS[row["method"]].title, "kept": kept_text(row, METHODS[row["method"]])}
        | {"lines_back": at["distance"], "back_tokens": at["tokens_back"], "asked": at["asked"]}
        | percent("chosen_percent", at["chosen_share"], at["chosen_interval"])
        | percent("exact_percent", at["exact_share"], at["exact_interval"])
        for record in records
        for row in record["rows"]
        for at in row["distances"]
    ]


def beyond_the_model(record: Record, measure: str) -> list[int]:
    """Return the distances, in lines, at which the model fails with everything kept.

    Args:
        record: of `measure_stream_eval`.
        measure: "chosen" or "exact".
    """
    (dense,) = (row for row in record["rows"] if row["method"] == "dense")
    return [at["distance"] for at in dense["distances"] if at[f"{measure}_share"] < ABLE]
