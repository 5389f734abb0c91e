"""What an experiment found: three sentences, the page to hand in, and the summary of every number."""

import base64
from collections.abc import Sequence
from html import escape

from tabulate import tabulate

from streamlm.config import METHODS
from streamlm.records.types import Record
from streamlm.summaries.escape import escape_markdown, escape_texts
from streamlm.summaries.main import ablation_rows, check_comparable, describe_setting, result_rows
from streamlm.summaries.tables import CHANGE, as_markdown, as_text, few_blocks, interval_text

TITLE = "What sinks + window lose and save"


def answer_sentences(results: Sequence[Record]) -> list[str]:
    """Return what the main comparison found, from `collect_result` records: quality, sinks, memory.

    Perplexity is said to be higher or lower where the interval of the paired change excludes zero.
    """
    check_comparable(results, same_stream=False)
    first = results[0]
    n_sink, window, model = first["n_sink"], first["window_size"], first["model"]
    kept = f"the first {n_sink} tokens and the last {window:,}" if n_sink else f"the last {window:,} tokens"
    methods = first["methods"]
    dense, streaming = (methods[name]["streaming"]["kv_bytes"] / 2**20 for name in ("dense", "streaming"))
    return [
        f"With {kept} of {_counts(results)}, the perplexity of {model} {_changes(results, 'streaming')}.",
        f"With as many tokens, all of them recent, it {_changes(results, 'window')}.",
        f"At the end of {first['dataset']}, keys and values take {_short(streaming)} MiB instead of "
        f"{_short(dense)}, and no more for a longer text.",
    ]


def _counts(results: Sequence[Record]) -> str:
    """Return the lengths of the texts."""
    return " / ".join(
        f"{count:,}" for count in dict.fromkeys(result["tokens"]["count"] for result in results)
    )


def _short(size: float) -> str:
    """Return a size with the digits that it deserves."""
    return f"{size:,.1f}" if size >= 1 else f"{size:.2g}"


def _changes(results: Sequence[Record], method: str) -> str:
    """Return in words how the perplexity under a method changes against dense, text by text."""
    groups: dict[str, list[str]] = {}
    for result in results:
        common = result["methods"][method]["common"]
        low, high = common[f"{CHANGE}_interval"]
        verb = "shows no difference to dense"
        if low > 0 or high < 0:
            verb = "is higher than under dense" if low > 0 else "is lower than under dense"
        change = interval_text(common[CHANGE], (low, high), 1)
        groups.setdefault(verb, []).append(f"on {result['dataset']} ({change} %)")
    return "; it ".join(f"{verb} {' and '.join(texts)}" for verb, texts in groups.items())


def answer_page(results: Sequence[Record], figure: bytes) -> str:
    """Return the answer as one HTML page that needs nothing else: sentences, table, figure.

    Args:
        results: `collect_result` records.
        figure: of the main comparison, as PNG.
    """
    left_out = ("perplexity", "runtime_s")  # columns that the summary has
    rows = [
        {name: value for name, value in row.items() if not name.startswith(left_out)}
        for row in result_rows(results)
    ]
    note = few_blocks([result["common"]["interval_blocks"] for result in results])
    headings, cells = as_text(rows)
    picture = base64.b64encode(figure).decode("ascii")
    return "\n".join(
        [
            '<meta charset="utf-8">',
            f"<h1>{TITLE}</h1>",
            *(f"<p>{escape(sentence)}</p>" for sentence in answer_sentences(results)),
            tabulate(cells, headings, "html", disable_numparse=True),
            *([f"<p>{note}: score more tokens.</p>"] if note else []),
            *(f"<p>{escape(line)}</p>" for line in _how_to_read(results)),
            f'<img alt="Main comparison" style="max-width: 100%" src="data:image/png;base64,{picture}">',
            "",
        ]
    )


def _how_to_read(results: Sequence[Record]) -> list[str]:
    """Return what the numbers of the main table mean."""
    result = results[0]
    return [
        f"Brackets are {result['confidence']:.0%} intervals of a moving-block bootstrap; they speak of "
        "this text, not of others. Perplexity after eviction counts only tokens past the capacity of the "
        "streaming cache: before it all methods see the same. Changes are of token-by-token paired losses.",
        f"Measured with {describe_setting(result)}, on {_counts(results)} tokens of each "
        f"text; {result['protocol']}.",
    ]


def _describe_sampled(result: Record) -> list[str]:
    """Return a paragraph for every method that is estimated from a sample of tokens."""
    return [
        f"*{METHODS[name].title}* computes the last {part['capacity']} tokens from scratch for every token. "
        f"That was done for {len(part['recomputed']['positions'])} seeded tokens of each text past the first "
        "eviction; perplexities are those of streaming plus the mean paired difference there."
        for name, part in result["methods"].items()
        if "recomputed" in part
    ]


def experiment_summary(results: Sequence[Record], ablations: Sequence[Record]) -> str:
    """Return `experiment_summary.md`: the answer, every number of the figures, and how to read it.

    Raises:
        ValueError: if the results are of different models, protocols or machines.
    """
    check_comparable(results, same_stream=False)
    result, shown = results[0], [escape_texts(result, escape_markdown) for result in results]
    parts = [
        f"# {TITLE}",
        "\n".join(f"- {sentence}" for sentence in answer_sentences(shown)),
        "## Main comparison",
        as_markdown(result_rows(results)),
        *_describe_sampled(result),
    ]
    for ablation in ablations:
        parts += [
            f"## Ablation of {ablation['ablation']}",
            f"All rows are judged on the tokens from {ablation['first_token']} on, past the largest "
            "capacity.",
            as_markdown(ablation_rows([ablation])),
        ]
    judged = [result["common"] for result in results]
    judged += [row["common"] for ablation in ablations for row in ablation["rows"]]
    if note := few_blocks([part["interval_blocks"] for part in judged]):
        parts.insert(2, f"**{note}: score more tokens.**")
    parts += [
        "## How it was measured",
        *_how_to_read(shown),
        "Scoring time compares single passes of the same block protocol over the text; it is not decoding "
        "speed.",
    ]
    return "\n\n".join(parts) + "\n"
