"""Bring records together: fill in the baseline, pair losses by token, gather ablations, make tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.config import METHODS, Method, StreamConfig, find_method
from streamlm.records.fields import check_record
from streamlm.records.files import hash_ids, read_losses, read_record
from streamlm.records.types import Record, RunRecord
from streamlm.stats import BootstrapConfig, Correction, Interval, after_token, paired_increase
from streamlm.summaries.tables import CHANGE, Row, interval_text, with_interval


@dataclass(frozen=True)
class Run:
    """A record with its per-token losses, (N-1,) in nats."""

    record: Record
    losses: np.ndarray  # of a `recompute` run, those of the streaming pass that it is paired with

    @property
    def correction(self) -> Correction | None:
        """What the mean of the losses lacks."""
        sample = self.record.get("recomputed")
        if sample is None or sample["difference_nats"] is None:
            return None
        difference = Interval(sample["difference_nats"], *sample["difference_interval"])
        return Correction(sample["first_token"], difference)


def read_run(path: Path | str, record_type: type = RunRecord) -> Run:
    """Return the run whose record is at `path`, its losses lying beside it.

    Raises:
        ValueError: if one of them is missing or damaged, or the record is of another version.
    """
    record = read_record(path)
    check_record(record, record_type, str(path))
    return Run(record, read_losses(path))


def with_baseline(run: Run, baseline: Run, first_token: int, cfg: BootstrapConfig) -> Record:
    """Return the record of `run` with `baseline` and the metrics that need it filled in.

    Args:
        run: of any method.
        baseline: dense, of the same tokens and the same protocol.
        first_token: `common` compares the tokens whose query is this one or later.
        cfg: of the bootstrap.

    Raises:
        ValueError: if the two are not comparable.
    """
    check_comparable([baseline.record, run.record])
    if baseline.record["method"] != "dense":
        raise ValueError(
            f"the baseline must be a dense record (--method dense), got {baseline.record['method']!r}"
        )
    ours, theirs = run.record["streaming"], baseline.record["streaming"]
    increase = paired_increase(run.losses, baseline.losses, cfg, correction=run.correction)
    seconds = ours["runtime_sec"]
    return {
        **run.record,
        "baseline": {**theirs, "after_eviction": after_token(baseline.losses, run.record["capacity"], cfg)},
        "metrics": {
            **run.record["metrics"],
            "speedup": None if seconds is None else theirs["runtime_sec"] / seconds,
            **increase,
        },
        "common": common_tokens(run, baseline, first_token, cfg),
    }


def common_tokens(run: Run, baseline: Run, first_token: int, cfg: BootstrapConfig) -> dict[str, Any] | None:
    """Return how `run` does on the tokens from `first_token` on, alone and paired with `baseline`."""
    described = after_token(run.losses, first_token, cfg, run.correction)
    if described is None:
        return None
    tails = run.losses[first_token:], baseline.losses[first_token:]
    increase = paired_increase(*tails, cfg, start=first_token, correction=run.correction)
    return {**described, **increase}


def check_comparable(records: Sequence[Record], *, same_stream: bool = True) -> None:
    """Raise ValueError unless all records are of one model, stream, protocol and machine."""
    first = records[0]
    for record in records[1:]:
        for what, of in COMPARABLE.items():
            if of(record) != of(first) and (same_stream or what != STREAM):
                raise ValueError(
                    f"records cannot be compared, their {what} differs: {of(first)!r} and {of(record)!r}; "
                    "measure both on the same stream and machine"
                )


STREAM = "stream of tokens"
COMPARABLE: dict[str, Callable[[Record], Any]] = {
    "model": lambda record: record["model"],
    STREAM: lambda record: record["tokens"]["sha256"],
    "protocol": lambda record: record["protocol"],
    "dtype": lambda record: record["environment"]["dtype"],
    "device": lambda record: record["environment"]["device"],
    "processor": lambda record: record["environment"]["processor"],
    "thread count": lambda record: record["environment"]["torch_threads"],
}


def check_baseline(baseline: Run, ids: np.ndarray) -> None:
    """Raise ValueError unless `baseline` is a whole dense run over exactly these token ids, (N,)."""
    record = baseline.record
    check_record(record, RunRecord, "the baseline")
    if record["method"] != "dense":
        raise ValueError(f"the baseline must be a dense record (--method dense), got {record['method']!r}")
    if record["tokens"]["sha256"] != hash_ids(ids):
        raise ValueError("records cannot be compared, their stream of tokens differs")
    nll = record["streaming"]["nll_nats"]
    mean = float(baseline.losses.mean(dtype=np.float64)) if len(baseline.losses) else float("nan")
    if len(baseline.losses) != len(ids) - 1 or not abs(mean - nll) < 1e-6 * max(1, abs(nll)):
        raise ValueError("the losses beside the baseline record are not the ones it was made of")


def _check_evicts(run: Run, capacity: int) -> None:
    if capacity >= len(run.losses):
        raise ValueError(
            f"nothing is evicted at capacity {capacity} in the {len(run.losses) + 1} tokens of "
            f"{run.record['dataset']}; take a longer text, more tokens or smaller windows"
        )


def collect_result(runs: Mapping[str, Path | str], cfg: BootstrapConfig) -> Record:
    """Return the main comparison of one corpus: the streaming record, and every method in `methods`.

    Args:
        runs: record paths by method: "dense", "window", "recompute" and "streaming".
        cfg: of the bootstrap.
    """
    read = {method: read_run(path) for method, path in runs.items()}
    first_token = read["streaming"].record["capacity"]
    _check_evicts(read["dense"], first_token)
    filled = {method: with_baseline(run, read["dense"], first_token, cfg) for method, run in read.items()}
    kept = ("n_sink", "window_size", "capacity", "streaming", "metrics", "common", "recomputed", "warnings")
    return {
        **filled["streaming"],
        "methods": {
            method: {key: record[key] for key in kept if key in record} for method, record in filled.items()
        },
    }


def collect_ablation(
    kind: str, dense: Sequence[Path | str], runs: Sequence[Path | str], cfg: BootstrapConfig
) -> Record:
    """Return an ablation over all texts: one row per text and geometry.

    Every row is judged on the same tokens, those past the largest capacity, and paired with dense there.

    Args:
        kind: "window_size" or "n_sink".
        dense: paths of the dense records, one per text.
        runs: paths of the records to compare, of any of these texts.
        cfg: of the bootstrap.

    Raises:
        ValueError: if no token lies past the largest capacity.
    """
    texts = {run.record["tokens"]["sha256"]: run for run in map(read_run, dense)}
    read = [read_run(path) for path in runs]
    first_token = max(run.record["capacity"] for run in read)
    kept = ("dataset", "n_sink", "window_size", "capacity", "streaming", "metrics", "common")
    rows = []
    for run in read:
        baseline = texts.get(run.record["tokens"]["sha256"])
        if baseline is None:
            raise ValueError(f"no dense record has the stream of tokens of {run.record['dataset']}")
        _check_evicts(baseline, first_token)
        record = with_baseline(run, baseline, first_token, cfg)
        rows.append({key: record[key] for key in kept})
    return {
        "ablation": kind,
        "first_token": first_token,
        **{key: read[0].record[key] for key in ("model", "protocol", "confidence", "environment")},
        "baseline": {
            run.record["dataset"]: {
                **run.record["streaming"],
                "tokens": run.record["tokens"],
                "common": after_token(run.losses, first_token, cfg),
            }
            for run in texts.values()
        },
        "rows": rows,
    }


def kept_text(part: Record, method: Method) -> str:
    """Return what a method keeps, as it is in tables: "all", or sinks + window."""
    return method.kept(StreamConfig(n_sink=part["n_sink"], window_size=part["window_size"]))


def each_method(results: Sequence[Record]) -> Iterator[tuple[Row, Record]]:
    """Yield the first cells of a row, and the record's part about the method, of `collect_result` records."""
    check_comparable(results, same_stream=False)
    for result in results:
        for name, part in result["methods"].items():
            method = find_method(name)
            names = {"text": result["dataset"], "method": method.title, "kept": kept_text(part, method)}
            yield names | {"sinks": part["n_sink"], "window": part["window_size"]}, part


def result_rows(results: Sequence[Record]) -> list[Row]:
    """Return the table of the main comparison, one row per text and method."""
    return [
        names
        | with_interval("perplexity", part["streaming"])
        | with_interval("after_eviction", part["common"], "perplexity")
        | with_interval("change_percent", None if names["kept"] == "all" else part["common"], CHANGE)
        | {
            "runtime_s": part["streaming"]["runtime_sec"],
            "kv_dropped_percent": 100 * part["metrics"]["compression_ratio"],
        }
        for names, part in each_method(results)
    ]


def ablation_rows(records: Sequence[Record]) -> list[Row]:
    """Return the table of an ablation, from the one `collect_ablation` record."""
    (ablation,) = records
    rows = []
    for text, dense in ablation["baseline"].items():
        sizes: Row = dict.fromkeys(("sinks", "window", "capacity"))
        names = {"text": text, "method": METHODS["dense"].title, **sizes}
        rows.append(names | with_interval("perplexity", dense["common"]))
        for row in ablation["rows"]:
            if row["dataset"] == text:
                method = METHODS["streaming" if row["n_sink"] else "window"].title
                sizes = {"sinks": row["n_sink"], "window": row["window_size"], "capacity": row["capacity"]}
                rows.append(
                    {"text": text, "method": method}
                    | sizes
                    | with_interval("perplexity", row["common"])
                    | with_interval("change_percent", row["common"], CHANGE)
                )
    return rows


def score_line(record: Record) -> str:
    """Return the outcome of one run in a few words."""
    scores, metrics = record["streaming"], record["metrics"]
    perplexity = interval_text(scores["perplexity"], scores["perplexity_interval"])
    dtype, storage = record["environment"]["dtype"], record["storage"]
    quantised = "" if storage == dtype else f", window in {storage},"
    if "recomputed" in record:
        sample = record["recomputed"]
        time = f"estimated from {len(sample['positions'])} tokens, {scores['tokens_per_sec']:.2f} tokens/s, "
    else:
        time = f"{scores['runtime_sec']:.2f} s, {scores['tokens_per_sec']:.0f} tokens/s, "
    line = (
        f"{record['method']} {record['n_sink']}+{record['window_size']}{quantised} on {record['dataset']}: "
        f"perplexity {perplexity}, {time}"
        f"{scores['kv_bytes'] / 2**20:.1f} MiB of KV, "
        f"{100 * metrics['compression_ratio']:.1f} % of the entries dropped"
    )
    if metrics["ppl_increase_percent"] is None:
        return line
    return f"{line}, {metrics['ppl_increase_percent']:+.2f} % perplexity against dense"


def describe_setting(record: Record) -> str:
    """Return model, type and machine of a record in one line."""
    environment, threads = record["environment"], record["environment"]["torch_threads"]
    return (
        f"{record['model']}, {environment['dtype']}, {environment['device']}, "
        f"{environment['processor']}, {threads} thread{'s' if threads > 1 else ''}"
    )
