"""Rows of numbers, and the same rows as text.

A row names its columns; the last word of a name is its unit where there is one. A number with an interval
takes three columns, `x`, `x_low` and `x_high`, which one cell of text shows together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from streamlm.summaries.escape import escape_markdown

Row = dict[str, Any]
CHANGE = "ppl_increase_percent"  # as records name the paired change of perplexity

GROUPS = ("text", "protocol", "trained")  # columns that hold for several rows, and are written once
UNITS = {"ms": "ms", "s": "s", "percent": "%", "nats": "nats", "mib": "MiB", "tokens": "tokens"}
WORDS = {"kv": "KV", "kl": "KL"}
# Where the words of a column's name do not make its heading.
HEADINGS = {
    "after_eviction": "perplexity after eviction",
    "change_percent": "change against dense, %",
    "runtime_s": "scored in, s",
    "kv_dropped_percent": "KV entries dropped, %",
    "held_tokens": "tokens kept",
    "kept_tokens": "tokens kept",
    "kv_at_end_mib": "KV at the end, MiB",
    "step_ms": "ms per token",
    "p95_ms": "95th percentile, ms",
    "cache_ms": "in the cache, ms",
    "rise_mib": "rise in a step, MiB",
    "peak_mib": "peak of a step, MiB",
    "kl_nats": "KL from dense, nats",
    "change_to_streamlm_percent": "perplexity change against streamlm, %",
    "kl_difference_nats": "KL difference to streamlm, nats",
    "change_to_prefilled_percent": "perplexity change, %",
    "kl_to_prefilled_nats": "KL difference, nats",
    "same_first_percent": "same first token, %",
    "change_to_most_sinks_percent": "perplexity change, %",
    "within_trained_nats": "within the trained length, nats",
    "past_trained_nats": "past the trained length, nats",
    "apart_from_tokens": "worse from token",
    "largest_difference_nats": "largest loss difference to streamlm, nats",
}
# Where a column has the same format whatever the size of its numbers.
FORMATS = {
    **dict.fromkeys(("perplexity", "after_eviction", "times_streaming", "cache_ms", "prefill_s"), ".2f"),
    **dict.fromkeys(("change_percent", "runtime_s", "kv_dropped_percent", "same_first_percent"), ".1f"),
    **dict.fromkeys(("change_to_streamlm_percent", "change_to_prefilled_percent"), ".1f"),
    **dict.fromkeys(("change_to_first_tokens_percent", "share_percent", "others_percent"), ".1f"),
    "zero_sink_percent": ".1f",
    **dict.fromkeys(("chosen_percent", "exact_percent"), ".0f"),  # of a few questions
    **dict.fromkeys(("perplexity_per_byte", "change_to_most_sinks_percent"), ".3f"),
    **dict.fromkeys(("kl_difference_nats", "kl_to_prefilled_nats"), ".3f"),
    **dict.fromkeys(("step_ms", "p95_ms", "kv_mib", "kv_at_end_mib", "rise_mib", "peak_mib"), ".1f"),
    "kl_nats": ".3f",
    "largest_difference_nats": ".2g",
}
MISSING = "-"
FEW_BLOCKS = 10


def with_interval(name: str, scores: Mapping[str, Any] | None, key: str = "") -> Row:
    """Return a number and its interval as columns of `name`; empty columns where there are no scores."""
    key = key or name
    return spread(name, *(None, (None, None)) if scores is None else (scores[key], scores[f"{key}_interval"]))


def spread(name: str, value: float | None, interval: Sequence[float | None]) -> Row:
    """Return a number and the ends of its interval as columns of `name`."""
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def percent(name: str, share: float, interval: Sequence[float]) -> Row:
    """Return a share and its interval as columns of `name`, in percent."""
    return spread(name, 100 * share, [100 * end for end in interval])


def mib(size: float | None) -> float | None:
    """Return a size in bytes as MiB."""
    return None if size is None else size / 2**20


def interval_text(mean: float, interval: Sequence[float], digits: int = 2) -> str:
    """Return a mean with its interval, as "20.3 [19.1, 21.6]"."""
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns that are shown: not the ends of intervals, nor what `kept` says already."""
    names = dict.fromkeys(name for row in rows for name in row)
    hidden = ("sinks", "window") if "kept" in names else ()
    return [name for name in names if not name.endswith(("_low", "_high")) and name not in hidden]


def heading(name: str) -> str:
    """Return a column's name in words, its unit after a comma: "prefill_s" is "prefill, s"."""
    *words, last = [WORDS.get(word, word) for word in name.split("_")]
    derived = f"{' '.join(words)}, {UNITS[last]}" if words and last in UNITS else " ".join([*words, last])
    return HEADINGS.get(name, derived)


def few_blocks(blocks: Sequence[float]) -> str | None:
    """Return what must be said of intervals from so many blocks of tokens each, if anything."""
    few = min(blocks) < FEW_BLOCKS
    return f"Intervals from fewer than {FEW_BLOCKS} blocks are too narrow" if few else None


def as_text(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of a table: intervals in brackets, no more digits than they deserve."""
    names = shown_columns(rows)
    return [heading(name) for name in names], [[_cell(row, name) for name in names] for row in rows]


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the table of number rows in Markdown."""
    shown = [{k: escape_markdown(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    headings, cells = as_text(shown)
    return str(tabulate(cells, headings, "github", disable_numparse=True))


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return MISSING
    if not isinstance(value, float):
        return str(value)
    numbers = [row[key] for key in (name, f"{name}_low", f"{name}_high") if row.get(key) is not None]
    size = max(map(abs, numbers))
    digits = FORMATS.get(name) or _digits(size)
    if size and float(f"{size:{digits}}") == 0:  # nothing would be left of it
        digits = _digits(size)
    mean, *ends = (f"{number:{digits}}" for number in numbers)
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _digits(size: float) -> str:
    """Return the format of numbers up to a size."""
    if 0 < size < 0.001:
        return ".2g"
    return f".{4 if 0 < size < 0.1 else 3 if size < 1 else 2 if size < 100 else 1 if size < 1000 else 0}f"
