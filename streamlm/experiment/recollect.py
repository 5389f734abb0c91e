"""Whether the records that people read follow from the run records that they were made of."""

import re
from collections.abc import Callable, Sized
from pathlib import Path

from streamlm.config import METHODS, StreamConfig
from streamlm.experiment.follow import bootstrap_of, compare_json, find_inside
from streamlm.experiment.plan import method_label
from streamlm.records.fields import check_record
from streamlm.records.files import read_record
from streamlm.records.paper import (
    MethodsAlongRecord,
    PositionsRecord,
    SinkMassRecord,
    TwinRecord,
    TwinsRecord,
)
from streamlm.records.types import (
    AblationRecord,
    ComparisonRecord,
    LongStreamRecord,
    Record,
    ResultRecord,
    RunRecord,
)
from streamlm.stats import BootstrapConfig
from streamlm.summaries.long_stream import collect_long_stream
from streamlm.summaries.main import collect_ablation, collect_result
from streamlm.summaries.methods_along import collect_methods_along
from streamlm.summaries.positions import collect_positions
from streamlm.summaries.presses import collect_comparison, read_compression, read_decoding
from streamlm.summaries.sink_mass import collect_sink_mass
from streamlm.summaries.twins import collect_twins

COLLECTED = ("positions", "methods_along", "sink_mass")  # of the records in paper/; the others are measured


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
    collected = [f"paper/*_{name}.json" for name in COLLECTED]
    patterns = ("streaming_llm/*.json", "kvpress/*_*.json", *collected, "paper/twins.json")
    return sorted(path for pattern in patterns for path in results.glob(pattern))


def _baseline(results: Path, corpus: str, found: Record) -> Record:
    return read_record(results / "runs" / corpus / "dense.json")


def _result(results: Path, corpus: str, found: Record) -> Record:
    runs = {
        method: results / "runs" / corpus / f"{_label(method, part)}.json"
        for method, part in found["methods"].items()
    }
    if wrong := sorted((runs.keys() - METHODS.keys()) | ({"dense", "streaming"} - runs.keys())):
        raise ValueError(f"its methods are not those of this version of streamlm ({wrong[0]})")
    return collect_result(runs, _intervals_of(runs["dense"]))


def _long_stream(results: Path, corpus: str, found: Record) -> Record:
    paths = [results / "runs" / corpus / f"long_{_label(row['method'], row)}.json" for row in found["rows"]]
    _check_any(paths)
    return collect_long_stream(paths, _intervals_of(paths[-1]))


def _methods_along(results: Path, corpus: str, found: Record) -> Record:
    paths = [results / "runs" / corpus / f"long_{_label(row['method'], row)}.json" for row in found["rows"]]
    _check_any(paths)
    return collect_methods_along(paths, _intervals_of(paths[-1]))


def _positions(results: Path, corpus: str, found: Record) -> Record:
    runs = results / "runs" / corpus
    in_text = [
        runs / f"long_{'yarn_' if 'yarn' in row else ''}{_label('text_positions', row)}.json"
        for row in found["rows"]
    ]
    _check_any(in_text)
    in_cache = dict.fromkeys(runs / f"long_{_label('streaming', row)}.json" for row in found["rows"])
    return collect_positions([*in_cache], in_text, _intervals_of(in_text[-1]))


def _sink_mass(results: Path, corpus: str, found: Record) -> Record:
    mass = read_record(results / "paper" / "runs" / f"{corpus}_sink_mass.json")
    return collect_sink_mass(mass, read_record(results / "streaming_llm" / "ablation_n_sink.json"))


def _twins(results: Path, corpus: str, found: Record) -> Record:
    folder = results / "paper" / "twins"
    names = [f"{twin['twin']}_seed{twin['seed']}.json" for twin in found["twins"]]
    records = [read_record(find_inside(folder, name)) for name in names]
    for name, record in zip(names, records, strict=True):
        check_record(record, TwinRecord, name)
    _check_any(names)
    return collect_twins(records)


def _ablation(results: Path, kind: str, found: Record) -> Record:
    dense = {read_record(path)["dataset"]: path for path in sorted((results / "runs").glob("*/dense.json"))}
    datasets = [*found["baseline"], *(row["dataset"] for row in found["rows"])]
    if unknown := [dataset for dataset in datasets if dataset not in dense]:
        raise ValueError(f"there is no dense run of {unknown[0]!r}")
    runs = [dense[row["dataset"]].parent / f"{_label('streaming', row)}.json" for row in found["rows"]]
    texts = [dense[dataset] for dataset in found["baseline"]]
    _check_any(runs)
    return collect_ablation(kind, texts, runs, _intervals_of(runs[0]))


def _comparison(part: int) -> Callable[[Path, str, Record], Record]:
    """Return how to make one of the three records of the comparison with kvpress."""

    def collect(results: Path, corpus: str, found: Record) -> Record:
        folder = results / "kvpress"
        comparison = read_record(folder / f"{corpus}_comparison.json")
        check_record(comparison, ComparisonRecord, "the comparison of the text")
        runs = {
            label: read_compression(find_inside(folder / "runs", f"{label}.json"))
            for label in comparison["methods"]
        }
        decoding = read_decoding(folder / "decoding.json")
        cfg = bootstrap_of(decoding.record)
        return collect_comparison(runs, decoding, found["dataset"], found["capacity"], cfg)[part]

    return collect


def _check_any(runs: Sized) -> None:
    if not runs:
        raise ValueError("it has no rows")


def _intervals_of(run: Path) -> BootstrapConfig:
    """Return the settings of the intervals in the record of a run."""
    record = read_record(run)
    check_record(record, RunRecord, str(run))
    return bootstrap_of(record, record["tokens"]["scored"])


def _label(method: str, part: Record) -> str:
    """Return the label of the run that a part of a summary was made of."""
    return method_label(method, StreamConfig(n_sink=part["n_sink"], window_size=part["window_size"]))


_Collect = Callable[[Path, str, Record], Record]
_COLLECTORS: dict[str, tuple[type, _Collect]] = {
    "streaming_llm/ablation_(.+)": (AblationRecord, _ablation),
    "streaming_llm/(.+)_baseline": (RunRecord, _baseline),
    "streaming_llm/(.+)_result": (ResultRecord, _result),
    "streaming_llm/(.+)_long_stream": (LongStreamRecord, _long_stream),
    "paper/(.+)_positions": (PositionsRecord, _positions),
    "paper/(.+)_methods_along": (MethodsAlongRecord, _methods_along),
    "paper/(.+)_sink_mass": (SinkMassRecord, _sink_mass),
    "paper/(twins)": (TwinsRecord, _twins),
    "streaming_llm/(.+)_comparison": (ComparisonRecord, _comparison(2)),
    "kvpress/(.+)_result": (ComparisonRecord, _comparison(0)),
    "kvpress/(.+)_comparison": (ComparisonRecord, _comparison(1)),
}
