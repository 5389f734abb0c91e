"""The check of a config before any job starts: every fault in one report, a line each."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from streamlm.experiment.faults import did_you_mean, repeated_keys, schema_faults, show, without
from streamlm.experiment.plan import (
    MODEL_FILES,
    Config,
    main_geometry,
    model_folder,
    sink_ablation,
    window_ablation,
)
from streamlm.presses.grammar import check_budgets, check_context, compared_methods, parse_press

SCHEMA = Path(__file__).resolve().parents[2] / "workflow" / "schemas" / "config.schema.yaml"


def check_config(config: Any, files: Iterable[Path | str] = ()) -> None:
    """Raise ValueError with every fault of a config, one line each: key, value, rule, remedy.

    Args:
        config: what YAML gave, whatever it is.
        files: the files that it was read from, to find keys that they repeat.
    """
    found = schema_faults(config, _schema())
    sound = {**without(config, {fault.unsound for fault in found if fault.unsound is not None})}
    for kind in {"models", "corpora"} & sound.keys():  # a name leads somewhere, whatever is wrong there
        sound[kind] = {name: {} for name in config[kind]} | sound[kind]
    lines = {line for file in files for line in repeated_keys(file)}
    lines |= {fault.line for fault in found}
    lines |= set(_contradictions(sound, whole=not found))
    if lines:
        raise ValueError("the config has faults:\n" + "\n".join(f"  {line}" for line in sorted(lines)))


@cache
def _schema() -> Any:
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def _contradictions(config: Config, whole: bool) -> Iterator[str]:
    """Yield what no schema can say: names that lead nowhere, sizes that contradict each other."""
    for check in CHECKS:
        try:
            yield from check(config)
        except KeyError:  # it needs a part that the schema refuses, and that is in the report
            if whole:
                raise


def _used(config: Config, kind: str) -> list[str]:
    experiment = config["experiment"]
    return [experiment["model"]] if kind == "models" else list(experiment["corpora"])


def _names(config: Config, kind: str) -> Iterator[str]:
    key = "model" if kind == "models" else "corpora"
    for name in _used(config, kind):
        if name not in config[kind]:
            known, meant = ", ".join(map(str, config[kind])), did_you_mean(name, config[kind])
            yield f"experiment.{key}: {show(name)} is not under {kind}; {meant}use one of {known} or add it"


def _paths(config: Config, kind: str) -> Iterator[str]:
    used = _used(config, kind)
    for name, entry in config[kind].items():
        path = entry.get("source", {}).get("path")
        if name in used and path is not None:
            folder = kind == "models" and not path.endswith(".gguf")
            for fault in _path_faults(Path(path), folder):
                yield f"{kind}.{name}.source.path: {show(path)} {fault}"


def _path_faults(path: Path, folder: bool) -> Iterator[str]:
    """Yield what is wrong with the user's own file, or folder with a model in it."""
    try:
        if not path.exists():
            yield "is not there; correct it or make it"
        elif folder and not (path / "config.json").is_file():
            yield "is no model; give a transformers folder with its config.json, or a .gguf file"
        elif not folder and not path.is_file():
            yield "is no file; give the file itself"
        elif hidden := [file for file in _read_of(path) if not os.access(file, os.R_OK)]:
            yield f"cannot be read: {hidden[0].name}; change its permissions, or fetch it again"
    except OSError as error:
        yield f"cannot be reached ({error.strerror}); correct it"


def _read_of(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if file.suffix in MODEL_FILES] if path.is_dir() else [path]


def _titles(config: Config) -> Iterator[str]:
    owners: dict[str, list[str]] = {}
    for name in _used(config, "corpora"):
        title = config["corpora"].get(name, {}).get("title")
        if title is not None and name not in owners.setdefault(title, []):
            owners[title].append(name)
    for title, names in owners.items():
        if len(names) > 1:
            yield f"corpora: {show(title)} is the title of {' and '.join(names)}; give each a name of its own"


def _formats(config: Config) -> Iterator[str]:
    for name, corpus in config["corpora"].items():
        if "format" not in corpus.get("source", {"format": None}):
            yield f"corpora.{name}.source: 'format' is missing; use mediawiki, gutenberg or text"


def _sink_windows(config: Config) -> Iterator[str]:
    sinks = config["experiment"]["sink_ablation"]
    for capacity in sinks["capacities"]:
        yield from _window("experiment.sink_ablation", max(sinks["n_sinks"]), capacity)


def _long_windows(config: Config) -> Iterator[str]:
    long = config["long_stream"]
    for capacity in long["capacities"]:
        yield from _window("long_stream", long["n_sink"], capacity)


def _latency_windows(config: Config) -> Iterator[str]:
    latency = config["decoding_latency"]
    for capacity in latency["capacities"]:
        yield from _window("decoding_latency", max(latency["n_sinks"]), capacity)


def _long_run_window(config: Config) -> Iterator[str]:
    latency = config["decoding_latency"]
    yield from _window("decoding_latency.long_run", latency["n_sinks"][0], latency["long_run"]["capacity"])


def _window(section: str, n_sink: int, capacity: int) -> Iterator[str]:
    if capacity <= n_sink:
        yield (
            f"{section}: capacity {capacity} leaves no window beside {n_sink} sinks; raise it or take fewer "
            "sinks"
        )


def _lengths(config: Config, section: str, key: str) -> Iterator[str]:
    n_tokens, capacity = config[section][key], _largest_cache(config, section)
    if capacity >= n_tokens - 1:
        yield (
            f"{section}.{key}: {n_tokens} tokens never fill the largest cache, {capacity}; raise it or "
            "take smaller windows"
        )


def _largest_cache(config: Config, section: str) -> int:
    """Return the tokens that the largest bounded cache of a section holds."""
    part = config[section]
    if section == "experiment":
        points = [main_geometry(config), *window_ablation(config), *sink_ablation(config)]
        return max(cfg.capacity for cfg in points)
    sizes: list[int] = [*part["budgets" if section == "comparison" else "capacities"]]
    if section == "decoding_latency":
        sizes.append(part["long_run"]["capacity"])
    return max(sizes)


def _presses(config: Config) -> Iterator[str]:
    comparison = config["comparison"]
    good: list[str] = []
    for text in comparison["presses"]:
        try:
            compared_methods(comparison["n_sink"], [*good, text])
            good.append(text)
            check_context(parse_press(text), comparison["context_tokens"])
        except ValueError as error:
            yield f"comparison.presses: {show(text)}: {error}"


def _budgets(config: Config) -> Iterator[str]:
    comparison = config["comparison"]
    for budget in comparison["budgets"]:
        try:
            check_budgets([budget], comparison["n_sink"], comparison["context_tokens"])
        except ValueError as error:
            yield f"comparison.budgets: {error}"


def _compared_capacity(config: Config) -> Iterator[str]:
    comparison = config["comparison"]
    if comparison["capacity"] not in comparison["budgets"]:
        yield f"comparison.capacity: {comparison['capacity']} must be one of the budgets; add it there"


def _compared_window(config: Config) -> Iterator[str]:
    comparison = config["comparison"]
    if comparison["capacity"] <= comparison["n_sink"] + 1:
        yield (
            f"comparison.capacity: {comparison['capacity']} leaves no window beside {comparison['n_sink']} "
            "sinks and the token that is decoded; raise it"
        )


# Each reads as little as it can: it is skipped where any of that has a fault by itself.
CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    *(partial(check, kind=kind) for check in (_names, _paths) for kind in ("models", "corpora")),
    _titles,
    _formats,
    _sink_windows,
    _long_windows,
    _latency_windows,
    _long_run_window,
    partial(_lengths, section="experiment", key="max_eval_tokens"),
    partial(_lengths, section="long_stream", key="max_eval_tokens"),
    partial(_lengths, section="long_stream", key="baseline_tokens"),
    _presses,
    _budgets,
    _compared_capacity,
    _compared_window,
)


def warn_beyond_training(config: Config) -> Iterator[str]:
    """Yield a line for each section with a cache beyond the model's trained length, if that is known yet.

    It is no fault: such a cache is measured as asked, and its records carry the length.
    """
    name = config["experiment"]["model"]
    try:
        described = json.loads((Path(model_folder(config, name)) / "config.json").read_bytes())
        trained = int((described.get("text_config") or described)["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # not made yet, or nothing of the kind; the job that loads it says what is wrong
    for section in ("experiment", "long_stream", "decoding_latency", "comparison"):
        capacity = _largest_cache(config, section)
        if capacity > trained:
            yield (
                f"{section}: a cache of {capacity} tokens is beyond the {trained} that {name} is trained to; "
                "it is measured all the same, take smaller windows if that is not meant"
            )
