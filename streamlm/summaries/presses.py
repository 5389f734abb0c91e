"""Bring the records of the comparison with kvpress together, and make their table."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from streamlm.presses.grammar import OURS, STREAMLM
from streamlm.records.types import CompressionRecord, DecodingRecord, Record
from streamlm.stats import BootstrapConfig, paired_increase
from streamlm.summaries.main import Run, check_comparable, describe_setting, read_run
from streamlm.summaries.tables import CHANGE, Row, as_markdown, few_blocks, mib, with_interval

read_compression = partial(read_run, record_type=CompressionRecord)
read_decoding = partial(read_run, record_type=DecodingRecord)

AS_IS = "StreamingLLMPress"
NAMES = {
    "dense": "dense",
    "streamlm": "streamlm",
    "streamlm_dense_prefill": "streamlm, prefilled densely",
    "StreamingLLMPress": "StreamingLLMPress as it is",
    "KeyRerotationPress": "StreamingLLMPress, keys re-rotated",
    "kvpress_faithful": "kvpress used faithfully",
}


def collect_comparison(
    runs: Mapping[str, Run], decoding: Run, dataset: str, capacity: int, cfg: BootstrapConfig
) -> tuple[Record, Record, Record]:
    """Return three records about one text: of kvpress, of kvpress beside streamlm, and of streamlm.

    The first holds the prefill compression of every method; the second `decoding` as well; the third ours
    of both. Their `streaming` is StreamingLLMPress as it is, or streamlm, at `capacity`.

    Args:
        runs: of `presses.prefill.measure_compression` by label, streamlm among them.
        decoding: of `presses.decoding.measure_decoding`.
        dataset: name of the text.
        capacity: entries kept in the main comparison.
        cfg: of the bootstrap.

    Raises:
        ValueError: if the runs are not of one model, text, protocol and machine.
    """
    compression = _collect_compression(runs, dataset, cfg)
    decoded = _collect_decoding(decoding, dataset, cfg)
    check_comparable([compression, {**decoded, "protocol": compression["protocol"]}], same_stream=False)
    methods = compression["methods"], decoded["methods"]
    result = _as_result(compression, AS_IS, capacity)
    ours = {
        **_as_result(compression, STREAMLM, capacity),
        "methods": {label: methods[0][label] for label in OURS},
        "decoding": {**decoded, "methods": {label: methods[1][label] for label in ("dense", STREAMLM)}},
    }
    return result, {**result, "decoding": decoded}, ours


def _text_of(record: Record, dataset: str) -> Record:
    """Return a record about several texts as one about this text."""
    (found,) = (text for text in record["texts"] if text["dataset"] == dataset)
    return {**{key: value for key, value in record.items() if key != "texts"}, **found}


def _losses_of(run: Run, dataset: str) -> np.ndarray:
    """Return the losses of one text, of several."""
    losses: np.ndarray = run.losses[[text["dataset"] for text in run.record["texts"]].index(dataset)]
    return losses


def _collect_compression(runs: Mapping[str, Run], dataset: str, cfg: BootstrapConfig) -> Record:
    """Return the prefill compression of one text: every method at every budget, paired token by token."""
    texts = {label: _text_of(run.record, dataset) for label, run in runs.items()}
    first = texts[STREAMLM]
    check_comparable([first, *texts.values()])
    for label, text in texts.items():
        if text["contexts"] != first["contexts"] or text["n_sink"] != first["n_sink"]:
            raise ValueError(
                f"{label} was not measured on the contexts and sinks of {STREAMLM}; measure both"
            )
    losses = {label: _losses_of(run, dataset) for label, run in runs.items()}  # (1 + budgets, tokens)
    shared = (
        "model", "trained_length", "dataset", "tokens", "n_sink", "protocol", "contexts", "confidence",
        "environment", "dense",
    )  # fmt: skip
    return {
        **{key: first[key] for key in shared},
        "methods": {
            label: {
                "method": text["method"],
                "refused": text["refused"],
                "budgets": [
                    {
                        **entry,
                        **_differences(losses[label][i], losses[label][0], losses[STREAMLM][i], cfg),
                    }
                    for i, entry in enumerate(text["budgets"], start=1)
                ],
            }
            for label, text in texts.items()
        },
    }


def _collect_decoding(run: Run, dataset: str, cfg: BootstrapConfig) -> Record:
    """Return the decoding of one text, its methods paired token by token."""
    text = _text_of(run.record, dataset)
    losses = dict(zip(text["methods"], _losses_of(run, dataset), strict=True))
    return {
        **text,
        "methods": {
            label: {**entry, **_differences(losses[label], losses["dense"], losses[STREAMLM], cfg)}
            for label, entry in text["methods"].items()
        },
    }


def _differences(losses: np.ndarray, dense: np.ndarray, ours: np.ndarray, cfg: BootstrapConfig) -> Record:
    """Return how losses (N,) differ from the dense ones and from streamlm's, on the same tokens."""
    largest = float(np.abs(losses.astype(np.float64) - ours).max())
    return {
        "against_dense": paired_increase(losses, dense, cfg),
        f"against_{STREAMLM}": {**paired_increase(losses, ours, cfg), "largest_nats": largest},
    }


def entry_at(part: Record, capacity: int) -> Record | None:
    """Return what a method gave at a budget; None if it cannot work on the model."""
    return next((entry for entry in part["budgets"] if entry["capacity"] == capacity), None)


def _as_result(compression: Record, label: str, capacity: int) -> Record:
    """Return the compression with `baseline`, `streaming` and `metrics` of one method filled in.

    `runtime_sec` is that of the prefill, compression included.
    """
    part, dense = compression["methods"][label], compression["dense"]
    entry = entry_at(part, capacity)
    if entry is None:
        raise ValueError(f"{label} was not measured at {capacity} entries: {part['refused'] or 'add it'}")
    return {
        **compression,
        "method": part["method"],
        "capacity": capacity,
        "baseline": {**dense, "runtime_sec": dense["prefill_sec"]},
        "streaming": {**entry, "runtime_sec": entry["prefill_sec"]},
        "metrics": {
            "speedup": dense["prefill_sec"] / entry["prefill_sec"],
            "compression_ratio": 1 - capacity / compression["contexts"]["context_tokens"],
            **entry["against_dense"],
        },
    }


def comparison_rows(comparisons: Sequence[Record]) -> list[Row]:
    """Return both protocols of every text at the main capacity."""
    check_comparable(comparisons, same_stream=False)
    rows: list[Row] = []
    for record in comparisons:
        cut = [("dense", record["dense"])]
        cut += [
            (method_name(label, part["method"]), entry_at(part, record["capacity"]))
            for label, part in record["methods"].items()
        ]
        decoded = [(method_name(label), entry) for label, entry in record["decoding"]["methods"].items()]
        capacity, decoded_capacity = record["capacity"], record["decoding"]["decoded"]["capacity"]
        for protocol, methods in (
            (f"cut once to {capacity}", cut),
            (f"decoded at {decoded_capacity}", decoded),
        ):
            names = {"text": record["dataset"], "protocol": protocol}
            rows += [names | {"method": name} | _metrics(name, entry) for name, entry in methods]
    return rows


def _metrics(name: str, entry: Record | None) -> Row:
    """Return the measured cells of a method; none if it cannot work on the model."""
    if entry is None:
        return {}
    is_dense = name == "dense"
    against_ours = {} if name == STREAMLM else entry.get(f"against_{STREAMLM}", {})
    return {
        **with_interval("perplexity", entry),
        **with_interval("change_percent", None if is_dense else entry.get("against_dense"), CHANGE),
        **with_interval("kl_nats", None if is_dense else entry),
        "same_first_percent": None if is_dense else 100 * entry["top1_agreement"],
        "prefill_s": entry["prefill_sec"],
        "step_ms": entry["step_ms"],
        "kv_mib": mib(entry["kv_bytes"]),
        "kv_at_end_mib": mib(entry.get("kv_bytes_at_end", entry["kv_bytes"])),
        "largest_difference_nats": against_ours.get("largest_nats"),
    }


def comparison_text(comparison: Record) -> str:
    """Return the table of one text in Markdown, and what it says in words."""
    return "\n".join(
        [as_markdown(comparison_rows([comparison])), *refusals(comparison), *findings(comparison)]
    )


def method_name(label: str, method: str = "") -> str:
    """Return how a label is written in tables and figures; a configured press as it stands in the config."""
    every = label.removeprefix("kvpress_every_")
    if every != label:
        return f"kvpress as it is, every {'token' if every == '1' else f'{every} tokens'}"
    return NAMES.get(label, method)


def refusals(comparison: Record) -> list[str]:
    """Return a line for every press that cannot work on the model, with the reason."""
    parts = comparison["methods"].values()
    return [f"{part['method']} is not compared: {part['refused']}" for part in parts if part["refused"]]


def findings(comparison: Record) -> list[str]:
    """Return in words: how far faithful kvpress is from streamlm, and what kvpress as it is still keeps."""
    methods = comparison["decoding"]["methods"]
    n_sink, capacity = comparison["n_sink"], comparison["decoding"]["decoded"]["capacity"]
    largest = methods["kvpress_faithful"][f"against_{STREAMLM}"]["largest_nats"]
    lines = [f"kvpress used faithfully and streamlm differ by at most {largest:.1g} nats in any token."]
    for label, entry in methods.items():
        held: Any = entry["survivors"]
        if held is not None and held["after_rounds"]:
            lines.append(
                f"{method_name(label)}: after {held['after_rounds']} rounds of eviction the first layer "
                f"keeps {held['sinks_after']:g} of {n_sink} sinks and {held['recent_after']:g} of the "
                f"{capacity - 1 - n_sink} most recent tokens; the losses change by "
                f"{entry['against_dense']['nll_difference_nats']:+.3f} nats against dense."
            )
    return lines


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
