"""What the comparison with kvpress says in words, and its summary in Markdown."""

from collections.abc import Sequence
from typing import Any

from streamlm.presses.grammar import DENSE_PREFILL, OURS, PRESSES, STREAMLM, parse_press
from streamlm.records.types import Record
from streamlm.summaries.escape import escape_markdown, escape_texts
from streamlm.summaries.main import check_comparable, describe_setting
from streamlm.summaries.presses import NAMES, comparison_rows, entry_at, method_name, paired_rows
from streamlm.summaries.tables import as_markdown, few_blocks, interval_text

KVPRESS_DEFAULTS = "kvpress's own defaults are an interval of 512 tokens and a target of 2,048"


def comparison_text(comparison: Record) -> str:
    """Return the table of one text in Markdown, and what it says in words."""
    return "\n".join(
        [
            as_markdown(comparison_rows([comparison])),
            *notes_on_presses(comparison),
            *press_findings(comparison),
            *findings(comparison),
        ]
    )


def comparison_summary(comparisons: Sequence[Record]) -> str:
    """Return `kvpress_summary.md`: every number of the comparison, and what it says in words."""
    check_comparable(comparisons, same_stream=False)
    parts = [
        "# streamlm and NVIDIA kvpress",
        "\n".join(f"- {line}" for line in describe_comparison(escape_texts(comparisons[0], escape_markdown))),
    ]
    for record in comparisons:
        shown = escape_texts(record, escape_markdown)
        lines = [*notes_on_presses(shown), *press_findings(shown), *findings(shown)]
        parts += [
            f"## {shown['dataset']}",
            "\n".join(f"- {line}" for line in lines),
            as_markdown([{k: v for k, v in row.items() if k != "text"} for row in comparison_rows([record])]),
            f"Cut once, paired with {NAMES[DENSE_PREFILL]}, on the same tokens:",
            as_markdown(paired_rows(record)),
        ]
    return "\n\n".join(parts) + "\n"


def notes_on_presses(comparison: Record) -> list[str]:
    """Return a line for every press that cannot work on the model, and for those that only mask."""
    lines = []
    for label, part in comparison["methods"].items():
        if part["refused"]:
            lines.append(f"{part['method']} is not compared: {part['refused']}")
        elif label not in OURS and PRESSES[parse_press(part["method"]).name].masks:
            lines.append(
                f"{part['method']} gives each head a share of the layer's budget; kvpress masks the other "
                "entries and keeps them in memory, and its time is that of our mask"
            )
    return lines


def findings(comparison: Record) -> list[str]:
    """Return in words: how far re-rotated kvpress is from streamlm, and what kvpress still keeps."""
    methods = comparison["decoding"]["methods"]
    n_sink, decoded = comparison["n_sink"], comparison["decoding"]["decoded"]
    largest = methods["kvpress_faithful"][f"against_{STREAMLM}"]["largest_nats"]
    lines = [
        f"The losses of streamlm and of kvpress (re-rotated, interval 1) differ by at most {largest:.1g} "
        f"nats in any token; {KVPRESS_DEFAULTS}."
    ]
    for label, entry in methods.items():
        held: Any = entry["survivors"]
        if held is not None and held["after_rounds"]:
            change = entry["against_dense"]
            difference = interval_text(change["nll_difference_nats"], change["nll_difference_interval"], 3)
            lines.append(
                f"{method_name(label)}: here, after {held['after_rounds']} rounds of eviction, the "
                f"first layer keeps {held['sinks_after']:g} of {n_sink} sinks and "
                f"{held['recent_after']:g} of the {decoded['capacity'] - 1 - n_sink} most recent tokens; "
                f"over {decoded['tokens']} tokens the losses change by {difference} nats against dense."
            )
    return lines


def press_findings(comparison: Record) -> list[str]:
    """Return in words which presses, at the main budget, differ from sinks + window after a dense prefill.

    A press is named where the interval of the paired difference in divergence excludes zero.
    """
    groups: dict[str, list[str]] = {
        "nearer to dense": [],
        "further from dense": [],
        "no difference shown": [],
    }
    for label, part in comparison["methods"].items():
        entry = entry_at(part, comparison["capacity"])
        if label in (*OURS, "KeyRerotationPress") or entry is None:
            continue
        against = entry[f"against_{DENSE_PREFILL}"]
        low, high = against["kl_difference_nats_interval"]
        where = "no difference shown"
        if low > 0 or high < 0:
            where = "nearer to dense" if high < 0 else "further from dense"
        difference = interval_text(against["kl_difference_nats"], (low, high), 3)
        groups[where].append(f"{method_name(label, part['method'])} ({difference})")
    if not any(groups.values()):
        return []
    size = comparison["contexts"]
    parts = [f"{where}: {', '.join(names)}" for where, names in groups.items() if names]
    return [
        f"Cut once to {comparison['capacity']} of {size['context_tokens']:,}, difference of mean KL from "
        f"dense to {NAMES[DENSE_PREFILL]}, nats: {'; '.join(parts)}."
    ]


def describe_comparison(record: Record) -> list[str]:
    """Return the lines that say what was measured, on what, and what the intervals mean."""
    contexts, decoded = record["contexts"], record["decoding"]["decoded"]
    return [
        describe_setting(record),
        f"cut once: {contexts['contexts']} x {contexts['context_tokens']:,} tokens of each text, the next "
        f"{contexts['scored_tokens']:,} scored; decoded: {decoded['tokens']:,} tokens, one by one, in turns",
        f"{record['n_sink']} sinks; intervals: {100 * record['confidence']:g} % moving-block bootstrap, "
        "within this text",
        *few_blocks_notes(record, record["decoding"]["methods"]["dense"]),
    ]


def few_blocks_notes(*parts: Record) -> list[str]:
    """Return what must be said of intervals from few blocks, if anything."""
    counts = [part.get("dense", part)["interval_blocks"] for part in parts]
    blocks = " and ".join(f"{count:.3g}" for count in counts)
    return [f"{note}: here they are {blocks}" for note in [few_blocks(counts)] if note]
