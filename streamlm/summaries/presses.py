"""Bring the records of the comparison with kvpress together, and make their table."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from streamlm.presses.grammar import DENSE_PREFILL, OURS, STREAMLM
from streamlm.records.types import CompressionRecord, DecodingRecord, Record
from streamlm.stats import BootstrapConfig, block_bootstrap, paired_increase
from streamlm.summaries.main import Run, check_comparable, read_run
from streamlm.summaries.tables import CHANGE, Row, mib, with_interval

read_compression = partial(read_run, record_type=CompressionRecord)
read_decoding = partial(read_run, record_type=DecodingRecord)

AS_IS = "StreamingLLMPress"
NAMES = {
    "dense": "dense",
    "streamlm": "streamlm",
    "streamlm_dense_prefill": "streamlm, prefilled densely",
    "StreamingLLMPress": "StreamingLLMPress as it is",
    "KeyRerotationPress": "StreamingLLMPress, keys re-rotated",
    "kvpress_faithful": "kvpress, re-rotated, interval 1",
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


def _scores_of(run: Run, dataset: str) -> np.ndarray:
    """Return the losses and divergences of one text: (2, methods, tokens).

    Raises:
        ValueError: if another version wrote them.
    """
    if run.losses.ndim != 4:
        raise ValueError("a comparison of another version of streamlm has no divergences; measure again")
    scores: np.ndarray = run.losses[:, [text["dataset"] for text in run.record["texts"]].index(dataset)]
    return scores


def _collect_compression(runs: Mapping[str, Run], dataset: str, cfg: BootstrapConfig) -> Record:
    """Return the prefill compression of one text: every method at every budget, paired token by token."""
    texts = {label: _text_of(run.record, dataset) for label, run in runs.items()}
    first = texts[STREAMLM]
    check_comparable([first, *texts.values()])
    for label, text in texts.items():
        capacities = [[entry["capacity"] for entry in each["budgets"]] for each in (text, first)]
        same = text["contexts"] == first["contexts"] and text["n_sink"] == first["n_sink"]
        if not same or (not text["refused"] and capacities[0] != capacities[1]):
            raise ValueError(
                f"{label} was not measured on the contexts, sinks and budgets of {STREAMLM}; measure both"
            )
    scores = {label: _scores_of(run, dataset) for label, run in runs.items()}  # (2, 1 + budgets, tokens)

    def paired(label: str, i: int) -> Record:
        """Return the differences of a method at the budget `i` from dense and from ours."""
        ours = {name: scores[name][:, i] for name in OURS}
        return _differences(scores[label][:, i], {"dense": scores[label][:, 0], **ours}, cfg)

    shared = (
        "model", "trained_length", "dataset", "tokens", "n_sink", "protocol", "contexts", "confidence",
        "environment", "dense",
    )  # fmt: skip
    return {
        **{key: first[key] for key in shared},
        "paired_with": ["dense", *OURS],
        "methods": {
            label: {
                "method": text["method"],
                "refused": text["refused"],
                "budgets": [
                    {**entry, **paired(label, i)} for i, entry in enumerate(text["budgets"], start=1)
                ],
            }
            for label, text in texts.items()
        },
    }


def _collect_decoding(run: Run, dataset: str, cfg: BootstrapConfig) -> Record:
    """Return the decoding of one text, its methods paired token by token."""
    text = _text_of(run.record, dataset)
    scores = dict(zip(text["methods"], np.moveaxis(_scores_of(run, dataset), 1, 0), strict=True))
    others = {label: scores[label] for label in ("dense", STREAMLM)}
    return {
        **text,
        "methods": {
            label: {**entry, **_differences(scores[label], others, cfg)}
            for label, entry in text["methods"].items()
        },
    }


def _differences(scores: np.ndarray, others: Mapping[str, np.ndarray], cfg: BootstrapConfig) -> Record:
    """Return how losses and divergences (2, N) differ from those of others, token by token."""
    wide = scores.astype(np.float64)
    found = {}
    for label, other in others.items():
        divergence = block_bootstrap(wide[1] - other[1], cfg)
        found[f"against_{label}"] = {
            **paired_increase(scores[0], other[0], cfg),
            "kl_difference_nats": divergence.mean,
            "kl_difference_nats_interval": [divergence.low, divergence.high],
            "largest_nats": float(np.abs(wide[0] - other[0]).max()),
        }
    return found


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


def paired_rows(comparison: Record) -> list[Row]:
    """Return how every method differs from our eviction after a dense prefill, at every budget."""
    return [
        {"method": method_name(label, part["method"]), "kept_tokens": entry["capacity"]}
        | with_interval("change_to_prefilled_percent", entry[f"against_{DENSE_PREFILL}"], CHANGE)
        | with_interval("kl_to_prefilled_nats", entry[f"against_{DENSE_PREFILL}"], "kl_difference_nats")
        for label, part in comparison["methods"].items()
        for entry in part["budgets"]
        if label != DENSE_PREFILL
    ]


def method_name(label: str, method: str = "") -> str:
    """Return how a label is written in tables and figures; a configured press as it stands in the config."""
    for prefix, how in (("kvpress_every_", ""), ("kvpress_in_order_every_", ", in order")):
        if label.startswith(prefix):
            return f"kvpress{how}, interval {label.removeprefix(prefix)}"
    return NAMES.get(label, method)
