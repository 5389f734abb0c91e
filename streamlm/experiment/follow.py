"""Whether the fields of one record follow from each other, and agree with the records beside it."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from streamlm.config import METHODS, StreamConfig, find_method
from streamlm.experiment.plan import method_label
from streamlm.limits import BOOTSTRAP_DRAWS
from streamlm.records.fields import check_record
from streamlm.records.files import read_losses, read_record
from streamlm.records.paper import (
    AttentionMapsRecord,
    RetrievalRecord,
    SinkMassRecord,
    SinkTokensRecord,
    StreamEvalRecord,
    TwinRecord,
)
from streamlm.records.types import BatchesRecord, Environment, LatencyRecord, LongRunRecord, Record, RunRecord
from streamlm.stats import (
    BootstrapConfig,
    after_token,
    block_bootstrap,
    describe_losses,
    paired_increase,
    proportion,
    trend,
)
from streamlm.summaries.main import Run
from streamlm.summaries.presses import read_compression, read_decoding

ROUNDING = 1e-6  # of a float, relative: sums over losses may be taken in another order elsewhere


class Refuted(Exception):
    """A number in a record is not what it is said to be."""


def compare_json(expected: Any, found: Any, where: str = "") -> None:
    """Compare two JSON values; floats may differ by a relative `ROUNDING`.

    Raises:
        Refuted: if they differ, with the place and both values.
        ValueError: if they have other fields: then another version of the code wrote one of them.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
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
    elif isinstance(expected, float) and isinstance(found, (int, float)) and not isinstance(found, bool):
        if not math.isclose(expected, found, rel_tol=ROUNDING, abs_tol=ROUNDING):
            raise Refuted(f"{where} is {found}, and {expected} by what it was made of")
    elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
        raise Refuted(f"{where} is {_short(found)}, and {_short(expected)} by what it was made of")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def find_inside(folder: Path, name: Path | str) -> Path:
    """Return the path of a file of the experiment.

    Raises:
        ValueError: if it is outside of the folder, by its name or by a link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name} leads out of {folder}, to {path.resolve()}; copy the file into it")
    return path


def bootstrap_of(record: Record, n_losses: int = 0) -> BootstrapConfig:
    """Return the settings of the intervals in a record.

    Raises:
        ValueError: if there are no such settings, or they would take for ever with so many losses.
    """
    known = {field.name for field in fields(BootstrapConfig)}
    if other := sorted(known ^ record["bootstrap"].keys()):
        raise ValueError(f"bootstrap.{other[0]} is missing, or no setting of this version of streamlm")
    cfg = BootstrapConfig(**record["bootstrap"])
    draws = cfg.resamples * max(1, n_losses // min(cfg.block, max(1, n_losses // 2)))
    if draws > BOOTSTRAP_DRAWS:
        raise ValueError(f"its intervals take {draws:,} draws, and at most {BOOTSTRAP_DRAWS:,} are made")
    return cfg


def check_label(path: Path, record: Record) -> None:
    """Raise Refuted if the name of a run's file says another run, or its environment another seed.

    Raises:
        ValueError: if its method is not known.
    """
    find_method(record["method"])
    stem = path.stem.removeprefix("long_").removeprefix("yarn_")
    cfg = StreamConfig(n_sink=record["n_sink"], window_size=record["window_size"])
    label = method_label(record["method"], cfg)
    if (stem in METHODS or re.fullmatch(r"(text_positions_)?sink\d+_window\d+", stem)) and stem != label:
        raise Refuted(f"it is the record of {label}, and its file is named {stem}")
    environment = record["environment"]
    if "seed" not in environment:
        raise ValueError("environment.seed is missing; measure again")
    if environment["seed"] != (seed := record["bootstrap"]["seed"]):
        raise Refuted(f"environment.seed is {environment['seed']}, and bootstrap.seed is {seed}")
    if unknown := sorted(environment.keys() - get_type_hints(Environment).keys()):
        raise ValueError(f"environment.{unknown[0]} is no field of this version of streamlm")


def read_if_run(path: Path) -> Record | None:
    """Return a run record; None if it is none, which its own check says."""
    try:
        record = read_record(path)
        check_record(record, RunRecord, str(path))
    except ValueError:
        return None
    return record


def check_siblings(path: Path, runs: Mapping[Path, Record]) -> list[str]:
    """Hold what cannot be computed again, names and the machine, against the other runs on the text.

    Returns:
        what is left to say.

    Raises:
        ValueError: if most of them do not say the same. Nothing says which are right then.
    """
    own, text = runs[path], [other for other in runs if other.parent == path.parent]
    alike = [
        other for other in text if _group_of(other, runs[other]) == _group_of(path, own)
    ]  # on one machine
    for describe, others in ((_names, text), (_machine, alike)):
        sections = [describe(runs[other]) for other in others]
        for what in sorted({what for section in sections for what in section}):
            value = describe(own).get(what)
            values = Counter(repr(section.get(what)) for section in sections)
            if len(values) > 1 and 2 * values[repr(value)] <= len(others):
                raise ValueError(
                    f"{what} is {_short(value)}, and most of the {len(others)} runs on this text say "
                    "otherwise; it was changed, or made elsewhere: measure all of them on one machine"
                )
    return [] if len(alike) > 1 else ["no other run was made like it, to hold its machine against"]


def _group_of(path: Path, record: Record) -> tuple[bool, str]:
    return path.name.startswith("long_"), record["environment"]["dtype"]


def _names(record: Record) -> dict[str, Any]:
    return {"model": record["model"], "dataset": record["dataset"]}


def _machine(record: Record) -> dict[str, Any]:
    """Return the section `environment` of a record, flat by names."""
    section = {f"environment.{key}": value for key, value in record["environment"].items()}
    packages = section.pop("environment.packages")
    return section | {f"environment.packages.{name}": version for name, version in packages.items()}


def follow_times(record: Record) -> None:
    """Raise Refuted unless what a record of decoding times says of them follows from each other."""
    if "tokens_seen" in record:
        check_record(record, LongRunRecord, "it")
        _follow_long_run(record)
        return
    check_record(record, LatencyRecord, "it")
    times = record["step_ms"]
    runs, (low, high) = times["runs"], times["spread"]
    if len(runs) < 1 or min(runs) <= 0:
        raise Refuted("step_ms.runs are no times")
    compare_json([min(runs), max(runs)], times["spread"], "step_ms.spread")
    compare_json(record["decoded"].get("runs", len(runs)), len(runs), "the number of step_ms.runs")
    if not low <= times["median"] <= high or times["p95"] < times["median"]:
        raise Refuted("step_ms has a median outside of its runs' medians, or above its 95th percentile")
    compare_json(record["n_sink"] + record["window_size"], record["capacity"], "capacity")
    compare_json(record["tokens"]["count"], record["capacity"], "capacity")


def _follow_long_run(record: Record) -> None:
    seen, times = np.array(record["tokens_seen"], float), record["step_ms"]
    parts, control = (np.array(times.get(name, []), float) for name in ("parts", "young_parts"))
    if not (parts.shape == control.shape == seen.shape and len(seen) and min(*parts, *control) > 0):
        raise Refuted("step_ms.parts are not a time for each of tokens_seen")
    found = trend(100 * parts / control, seen / 1000)
    compare_json(found, record["trend_percent_per_1000_tokens"], "trend_percent_per_1000_tokens")


def follow_scores(path: Path) -> None:
    """Recompute what a record of the comparison with kvpress says of the scores beside it.

    Raises:
        Refuted: if it says something else.
        ValueError: if one of them cannot be read.
    """
    run = (read_decoding if path.stem == "decoding" else read_compression)(path)
    texts, cfg = run.record["texts"], bootstrap_of(run.record)
    for i, text in enumerate(texts):
        entries = list(text["methods"].values()) if "methods" in text else [text["dense"], *text["budgets"]]
        if run.losses.shape[:3] != (2, len(texts), len(entries)):
            raise Refuted(f"it has scores of shape {run.losses.shape} beside it, and others by its texts")
        for j, entry in enumerate(entries):
            _follow_entry(run, entry, i, j, cfg)


def _follow_entry(run: Run, entry: Record, i: int, j: int, cfg: BootstrapConfig) -> None:
    losses, divergences = run.losses[:, i, j]
    divergence = block_bootstrap(divergences, cfg)
    expected = describe_losses(losses, cfg) | {
        "kl_nats": divergence.mean,
        "kl_nats_interval": [divergence.low, divergence.high],
    }
    compare_json(expected, {key: entry.get(key) for key in expected}, f"texts[{i}], entry {j}")


def follow_paper(path: Path) -> None:
    """Hold what a record in paper/ or tasks/ says against what is beside it, and against itself.

    Raises:
        Refuted: if it does not follow, or a share of attention is none.
        ValueError: if the record is of another version, or what it was made of cannot be read.
    """
    record = read_record(path)
    of_twin = path.parent.name == "twins"
    found_types = (found for end, found in PAPER_TYPES.items() if path.stem.endswith(end))
    record_type = TwinRecord if of_twin else next(found_types, None)
    if record_type is None:
        raise ValueError("it is not a record that this version of streamlm makes")
    check_record(record, record_type, "it")
    if record_type is SinkTokensRecord:
        _follow_sink_tokens(path, record)
        return
    if record_type is BatchesRecord:
        _follow_batches(record)
        return
    if record_type in (StreamEvalRecord, RetrievalRecord):
        _follow_answers(record)
        return
    if of_twin:
        _follow_twin(path, record)
    layers = [layer for of in record.get("methods", {}).values() for layer in of] or record["layers"]
    shares = [share for layer in layers for share in layer.get("by_head", layer.get("first_token_by_head"))]
    shares += [share for layer in layers for share in layer.get("share", [])]
    if not all(0 <= share <= 1 + SHARE_ROUNDING for share in shares):
        raise Refuted("it has a share of attention that is no share")


def _follow_sink_tokens(path: Path, record: Record) -> None:
    losses, cfg, first = read_losses(path), bootstrap_of(record), record["first_token"]
    if losses.shape != (len(record["rows"]), record["tokens"]["scored"]):
        raise Refuted(f"it has losses of shape {losses.shape} beside it, and others by its rows")
    for i, row in enumerate(record["rows"]):
        tails = losses[i][first:], losses[0][first:]
        expected = (after_token(losses[i], first, cfg) or {}) | paired_increase(*tails, cfg, start=first)
        compare_json(expected, row["common"], f"rows[{i}].common")


def _follow_answers(record: Record) -> None:
    for row in record["rows"]:
        for at in row.get("distances", row.get("tasks")):
            what = at.get("task", f"{at.get('distance')} lines back")
            for name in ("exact", "chosen"):
                found, where = at[name], f"{row['method']}, {what}, {name}"
                if not found or len(found) != at["asked"]:
                    raise Refuted(f"{where}: it has {len(found)} answers to {at['asked']} questions")
                expected = proportion(sum(found), len(found), record["confidence"])
                compare_json(expected, {key: at[f"{name}_{key}"] for key in expected}, where)


def _follow_batches(record: Record) -> None:
    for row in record["rows"]:
        timing, where = row["step_ms"], f"{row['method']}, batch {row['batch']}"
        runs = timing["runs"]
        if len(runs) != record["decoded"]["runs"] or min(runs) <= 0:
            raise Refuted(f"{where}: it has {len(runs)} runs, or one that took no time")
        expected = {"spread": [min(runs), max(runs)], "rate": 1e3 * row["batch"] / timing["median"]}
        compare_json(expected, {"spread": timing["spread"], "rate": row["tokens_per_sec"]}, where)
        if not min(runs) <= timing["median"] <= max(runs):
            raise Refuted(f"{where}: its median lies outside of its runs")


def _follow_twin(path: Path, record: Record) -> None:
    losses, cfg = read_losses(path), bootstrap_of(record)
    if losses.shape != (len(record["rows"]), record["tokens"]["scored"]):
        raise Refuted(f"it has losses of shape {losses.shape} beside it, and others by its rows")
    most = max(range(len(losses)), key=lambda i: record["rows"][i]["n_sink"])
    for i, row in enumerate(record["rows"]):
        expected = describe_losses(losses[i], cfg) | paired_increase(losses[i], losses[most], cfg)
        compare_json(expected, {key: row["common"][key] for key in expected}, f"rows[{i}].common")


SHARE_ROUNDING = 1e-3  # of a share that was computed in bfloat16
PAPER_TYPES = {
    "stream_eval": StreamEvalRecord,
    "retrieval": RetrievalRecord,
    "batches": BatchesRecord,
    "_attention_maps": AttentionMapsRecord,
    "_sink_mass": SinkMassRecord,
    "_sink_tokens": SinkTokensRecord,
}
