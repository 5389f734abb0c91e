"""Whether the records that people read follow from the run records that they were made of."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamlm.config import StreamConfig
from streamlm.experiment.plan import method_label
from streamlm.records.files import read_record
from streamlm.records.types import (
    AblationRecord,
    ComparisonRecord,
    LongStreamRecord,
    Record,
    ResultRecord,
    RunRecord,
    check_record,
)
from streamlm.stats import BootstrapConfig, after_token, describe_losses, sample_difference
from streamlm.summaries.long_stream import collect_long_stream
from streamlm.summaries.main import Run, collect_ablation, collect_result
from streamlm.summaries.presses import collect_comparison, read_compression, read_decoding

ROUNDING = 1e-6  # of a float, relative: sums over losses may be taken in another order elsewhere


class Refuted(Exception):
    """A number in a record is not what it is said to be."""


def compare_json(expected: Any, found: Any, where: str = "") -> None:
    """Compare two JSON values; floats may differ by a relative `ROUNDING`.

    Raises:
        Refuted: if they differ, with the place and both values.
        ValueError: if they have other fields: then another version of the code wrote one of them.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        if other := sorted(expected.keys() ^ found.keys()):
            raise ValueError(
                f"{where or 'the record'} does not have the fields of this version of streamlm ({other[0]}); "
                "verify with the version that made it"
            )
        for key in expected:
            compare_json(expected[key], found[key], f"{where}.{key}".strip("."))
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, pair in enumerate(zip(expected, found, strict=True)):
            compare_json(*pair, f"{where}[{i}]")
    elif isinstance(expected, float) and isinstance(found, (int, float)):
        if not math.isclose(expected, found, rel_tol=ROUNDING, abs_tol=ROUNDING):
            raise Refuted(f"{where} is {found}, and {expected} by what it was made of")
    elif expected != found:
        raise Refuted(f"{where} is {found!r}, and {expected!r} by what it was made of")


def follow_run(run: Run) -> None:
    """Recompute what a run record says of its losses.

    Raises:
        Refuted: if it says something else.
        ValueError: if it is a record of another version.
    """
    record, losses, scores = run.record, run.losses, run.record["streaming"]
    cfg, capacity, sample = bootstrap_of(record), record["capacity"], record.get("recomputed")
    if record["tokens"]["scored"] != len(losses):
        raise Refuted(
            f"it has {record['tokens']['scored']} losses by its record, and {len(losses)} beside it"
        )
    if sample is not None and sample["positions"]:
        positions, recomputed = sample["positions"], sample["losses_nats"]
        if len(positions) != len(recomputed) or not max(positions) < len(losses):
            raise Refuted(f"it has {len(recomputed)} recomputed losses that do not fit its positions")
        spacing = (len(losses) - capacity) / len(positions)
        difference = sample_difference(recomputed - losses[positions].astype("f8"), spacing, cfg)
        names = ("difference_nats", "difference_interval")
        compare_json(
            [difference.mean, [difference.low, difference.high]],
            [sample[name] for name in names],
            "recomputed",
        )
    expected = describe_losses(losses, cfg, correction=run.correction)
    expected["after_eviction"] = after_token(losses, capacity, cfg, run.correction)
    compare_json(expected, {key: scores[key] for key in expected}, "streaming")


def bootstrap_of(record: Record) -> BootstrapConfig:
    """Return the settings of the intervals in a run record."""
    return BootstrapConfig(**record["bootstrap"])


def follow_summary(results: Path, path: Path) -> None:
    """Rebuild a summary record from the run records under `results`.

    Raises:
        Refuted: if it is not the same.
        ValueError: if they are not there, or it is a record of another version.
    """
    found, name = read_record(path), f"{path.parent.name}/{path.stem}"
    for pattern, (record_type, collect) in _COLLECTORS.items():
        if match := re.fullmatch(pattern, name):
            check_record(found, record_type, "it")
            return compare_json(collect(results, match[1], found), found)
    raise ValueError("it is not a summary that this version of streamlm makes")


def summaries(results: Path) -> list[Path]:
    """Return the paths of the summary records under `results`."""
    return sorted([*(results / "streaming_llm").glob("*.json"), *(results / "kvpress").glob("*_*.json")])


def _baseline(results: Path, corpus: str, found: Record) -> Record:
    return read_record(results / "runs" / corpus / "dense.json")


def _result(results: Path, corpus: str, found: Record) -> Record:
    runs = {
        method: results / "runs" / corpus / f"{_label(method, part)}.json"
        for method, part in found["methods"].items()
    }
    return collect_result(runs, bootstrap_of(read_record(runs["dense"])))


def _long_stream(results: Path, corpus: str, found: Record) -> Record:
    paths = [results / "runs" / corpus / f"long_{_label(row['method'], row)}.json" for row in found["rows"]]
    return collect_long_stream(paths, bootstrap_of(read_record(paths[-1])))


def _ablation(results: Path, _: str, found: Record) -> Record:
    dense = {read_record(path)["dataset"]: path for path in sorted((results / "runs").glob("*/dense.json"))}
    runs = [dense[row["dataset"]].parent / f"{_label('streaming', row)}.json" for row in found["rows"]]
    texts = [dense[dataset] for dataset in found["baseline"]]
    return collect_ablation(found["ablation"], texts, runs, bootstrap_of(read_record(runs[0])))


def _comparison(part: int) -> Callable[[Path, str, Record], Record]:
    """Return how to make one of the three records of the comparison with kvpress."""

    def collect(results: Path, corpus: str, found: Record) -> Record:
        folder = results / "kvpress"
        labels = read_record(folder / f"{corpus}_comparison.json")["methods"]
        runs = {label: read_compression(folder / "runs" / f"{label}.json") for label in labels}
        decoding = read_decoding(folder / "decoding.json")
        cfg = bootstrap_of(decoding.record)
        return collect_comparison(runs, decoding, found["dataset"], found["capacity"], cfg)[part]

    return collect


def _label(method: str, part: Record) -> str:
    """Return the label of the run that a part of a summary was made of."""
    return method_label(method, StreamConfig(n_sink=part["n_sink"], window_size=part["window_size"]))


_Collect = Callable[[Path, str, Record], Record]
_COLLECTORS: dict[str, tuple[type, _Collect]] = {
    "streaming_llm/ablation_(.+)": (AblationRecord, _ablation),
    "streaming_llm/(.+)_baseline": (RunRecord, _baseline),
    "streaming_llm/(.+)_result": (ResultRecord, _result),
    "streaming_llm/(.+)_long_stream": (LongStreamRecord, _long_stream),
    "streaming_llm/(.+)_comparison": (ComparisonRecord, _comparison(2)),
    "kvpress/(.+)_result": (ComparisonRecord, _comparison(0)),
    "kvpress/(.+)_comparison": (ComparisonRecord, _comparison(1)),
}
