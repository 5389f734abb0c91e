"""The check of a config before any job starts: every fault in one report, a line each."""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from streamlm import limits
from streamlm.cache.folder import read_object
from streamlm.characters import find_steering
from streamlm.config import SHARE_QUERIES
from streamlm.experiment.config_file import check_file, repeated_keys
from streamlm.experiment.faults import KeyPath, did_you_mean, key_name, schema_faults, show, without
from streamlm.experiment.plan import MODEL_FILES, Config, model_folder
from streamlm.presses.grammar import check_budgets, check_context, compared_methods, parse_press
from streamlm.tasks.retrieval_text import RetrievalText
from streamlm.tasks.stream_text import StreamText

SCHEMA = Path(__file__).with_name("config.schema.yaml")


def check_config(
    config: Any, files: Iterable[Path | str] = (), command_line: Mapping[str, Any] | None = None
) -> None:
    """Raise ValueError with every fault of a config, one line each: key, value, rule, remedy.

    Args:
        config: what was read from YAML, whatever it is.
        files: the files that it was read from, to find keys that they repeat.
        command_line: what `--config` set; Snakemake reads all values inside a section there as text.
    """
    read = [file for file in files if Path(file).is_file()]  # not a pipe, which can be read but once
    for file in read:
        check_file(file)
    found = schema_faults(config, read_schema())
    sound = {**without(config, {fault.unsound for fault in found if fault.unsound is not None})}
    for section in {"models", "corpora"} & sound.keys():  # a faulty entry can still be referred to
        sound[section] = {name: {} for name in config[section]} | sound[section]
    lines = {line for file in read for line in repeated_keys(file)}
    lines |= {fault.line for fault in found}
    lines |= set(_contradictions(sound)) | set(_steering(sound))
    if lines:
        report = ["the config has faults:", *(f"  {line}" for line in sorted(lines))]
        if sections := [name for name, value in (command_line or {}).items() if isinstance(value, dict)]:
            report.append(
                f"  (Snakemake reads the values of {sections[0]} after --config as text; write them into a "
                "YAML file, and name it with --configfile)"
            )
        raise ValueError("\n".join(report))


@cache
def read_schema() -> Any:
    """Return the schema of a config, its limits filled in."""
    return _with_limits(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))


LIMITED = ("maximum", "maxItems", "maxLength", "maxProperties")


def _with_limits(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    return {
        key: getattr(limits, rule) if key in LIMITED and isinstance(rule, str) else _with_limits(rule)
        for key, rule in schema.items()
    }


def _contradictions(config: Config) -> Iterator[str]:
    """Yield the faults that no schema can find: unknown names, sizes that contradict each other."""
    for check, *keys in CHECKS:
        values = [_value(config, key) for key in keys]
        if None not in values:  # a missing value has a fault of its own in the report
            yield from check(*values)


def _steering(value: Any, path: KeyPath = ()) -> Iterator[str]:
    """Yield a line for every text with a character that steers; names reach terminals and reports."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _steering(part, (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _steering(part, (*path, i))
    elif isinstance(value, str) and (steering := find_steering(value)):
        yield f"{key_name(path)}: {show(value)} has the character {steering}; take it out"


def _value(config: Any, key: str) -> Any:
    """Return the value of a key such as `long_stream.n_sink`, or None if there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(key: str, section: str, used: list[str] | str, entries: Config) -> Iterator[str]:
    for name in _listed(used):
        if name not in entries:
            known, meant = ", ".join(map(str, entries)), did_you_mean(name, entries)
            yield f"{key}: {show(name)} is not under {section}; {meant}use one of {known} or add it"


def _others(names: list[str], model: str) -> Iterator[str]:
    if model in names:
        yield f"paper.models: {show(model)} is experiment.model, which is there anyway; leave it out"


def _paths(section: str, used: list[str] | str, entries: Config) -> Iterator[str]:
    for name, entry in entries.items():
        path = _value(entry, "source.path")
        if name in _listed(used) and path is not None:
            is_folder = section == "models" and not path.endswith(".gguf")
            for fault in _path_faults(Path(path), is_folder):
                yield f"{section}.{name}.source.path: {show(path)} {fault}"


def _path_faults(path: Path, is_folder: bool) -> Iterator[str]:
    """Yield what is wrong with the user's own file or model folder."""
    try:
        if not path.exists():
            yield "does not exist; correct the path or create it"
        elif is_folder and not (path / "config.json").is_file():
            yield "is not a model; use a transformers folder with its config.json, or a .gguf file"
        elif not is_folder and not path.is_file():
            yield "is not a file; name the file itself"
        elif hidden := [file for file in _files_to_read(path) if not os.access(file, os.R_OK)]:
            yield f"cannot be read: {hidden[0].name}; change its permissions, or fetch it again"
    except OSError as error:
        yield f"cannot be reached ({error.strerror}); correct it"


def _files_to_read(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if file.suffix in MODEL_FILES] if path.is_dir() else [path]


def _titles(used: list[str], entries: Config) -> Iterator[str]:
    owners: dict[Any, dict[str, None]] = {}
    for name in used:
        owners.setdefault(entries.get(name, {}).get("title"), {})[name] = None
    for title, names in owners.items():
        if title is not None and len(names) > 1:
            yield f"corpora: {show(title)} is the title of {' and '.join(names)}; give each its own title"


def _formulas(section: str, entries: Config) -> Iterator[str]:
    for name, entry in entries.items():
        title = entry.get("title")
        if str(title).count("$") > 1:
            yield (
                f"{section}.{name}.title: {show(title)} has two $, between which many programs that show "
                "tables and figures set a formula; use one at most"
            )


def _formats(entries: Config) -> Iterator[str]:
    for name, corpus in entries.items():
        if "format" not in corpus.get("source", {"format": None}):
            yield f"corpora.{name}.source: 'format' is missing; use mediawiki, gutenberg or text"


def _windows(section: str, n_sinks: list[int] | int, capacities: list[int] | int) -> Iterator[str]:
    n_sink = max(_listed(n_sinks))
    for capacity in _listed(capacities):
        if capacity <= n_sink:
            yield (
                f"{section}: capacity {capacity} leaves no window beside {n_sink} sinks; raise it or take "
                "fewer sinks"
            )


def _long_run_window(n_sinks: list[int], capacity: int) -> Iterator[str]:
    yield from _windows("decoding_latency.long_run", n_sinks[0], capacity)


def _length(section: str, key: str, settings: Config) -> Iterator[str]:
    n_tokens, capacity = settings.get(key), _largest_cache(section, settings)
    if n_tokens is not None and capacity is not None and capacity >= n_tokens - 1:
        yield (
            f"{section}.{key}: {n_tokens} tokens never fill the largest cache, {capacity}; raise it or "
            "take smaller windows"
        )


# The keys that give the sizes of a section's bounded caches, in tokens; keys in one tuple are added.
CACHES = {
    "experiment": (
        ("n_sink", "window_size"),
        ("window_ablation.n_sink", "window_ablation.window_sizes"),
        ("sink_ablation.capacities",),
    ),
    "long_stream": (("capacities",),),
    "decoding_latency": (("capacities",), ("long_run.capacity",)),
    "comparison": (("budgets",),),
}


def _largest_cache(section: str, settings: Config) -> int | None:
    """Return the tokens in the largest bounded cache of a section; None if a key that it needs is missing."""
    sizes = [[_value(settings, key) for key in keys] for keys in CACHES[section]]
    if any(None in size for size in sizes):
        return None
    largest: int = max(sum(max(_listed(value)) for value in size) for size in sizes)
    return largest


def _fills(key: str, capacity: int, n_tokens: int) -> Iterator[str]:
    if capacity >= n_tokens - 1:
        yield f"{key}: {n_tokens} tokens never fill a cache of {capacity}; raise it or take a smaller one"


def _context(n_sink: int, context_tokens: int) -> Iterator[str]:
    if context_tokens < n_sink + SHARE_QUERIES:
        yield (
            f"paper.sink_mass.context_tokens: {context_tokens} leave no room for {n_sink} sinks and the "
            f"{SHARE_QUERIES} tokens that are looked at; raise it"
        )


def _asked(lines: int, every: int, distances: list[int], streams: int, candidates: int) -> Iterator[str]:
    try:
        StreamText(lines=lines, every=every, distances=distances, streams=streams, candidates=candidates)
    except ValueError as error:
        yield f"paper.stream_eval.lines: {error}"


def _pairs(hidden: int, heads: int) -> Iterator[str]:
    if hidden % (2 * heads):
        yield (
            f"paper.pretraining.hidden: {hidden} must be a multiple of twice the heads, {2 * heads}; rotary "
            "positions rotate pairs"
        )


def _presses(n_sink: int, presses: list[str]) -> Iterator[str]:
    good: list[str] = []
    for text in presses:
        try:
            compared_methods(n_sink, [*good, text])
            good.append(text)
        except ValueError as error:
            yield f"comparison.presses: {show(text)}: {error}"


def _asked_presses(section: str, presses: list[str]) -> Iterator[str]:
    for i, text in enumerate(presses):
        try:
            parse_press(text)
            if text in presses[:i]:
                raise ValueError(f"{text} is there already; name every press once")
        except ValueError as error:
            yield f"{section}.presses: {show(text)}: {error}"


def _hidden(words: int, samples: int, candidates: int) -> Iterator[str]:
    try:
        RetrievalText(words=words, samples=samples, candidates=candidates)
    except ValueError as error:
        yield f"tasks.candidates: {error}"


def _press_contexts(presses: list[str], context_tokens: int) -> Iterator[str]:
    for text in presses:
        try:
            check_context(parse_press(text), context_tokens)
        except ValueError as error:  # also what `_presses` reports, in the same line
            yield f"comparison.presses: {show(text)}: {error}"


def _budgets(budgets: list[int], n_sink: int, context_tokens: int) -> Iterator[str]:
    for budget in budgets:
        try:
            check_budgets([budget], n_sink, context_tokens)
        except ValueError as error:
            yield f"comparison.budgets: {error}"


def _compared_capacity(capacity: int, budgets: list[int]) -> Iterator[str]:
    if capacity not in budgets:
        yield f"comparison.capacity: {capacity} must be one of the budgets; add it there"


def _compared_window(capacity: int, n_sink: int) -> Iterator[str]:
    if capacity <= n_sink + 1:
        yield (
            f"comparison.capacity: {capacity} leaves no window beside {n_sink} sinks and the token that is "
            "decoded; raise it"
        )


# A check and the keys whose values it takes.
CHECKS: tuple[tuple[Any, ...], ...] = (
    (partial(_names, "experiment.model", "models"), "experiment.model", "models"),
    (partial(_names, "paper.models", "models"), "paper.models", "models"),
    (partial(_names, "experiment.corpora", "corpora"), "experiment.corpora", "corpora"),
    (_others, "paper.models", "experiment.model"),
    (partial(_paths, "models"), "experiment.model", "models"),
    (partial(_paths, "models"), "paper.models", "models"),
    (partial(_paths, "corpora"), "experiment.corpora", "corpora"),
    (_titles, "experiment.corpora", "corpora"),
    (partial(_formulas, "models"), "models"),
    (partial(_formulas, "corpora"), "corpora"),
    (_formats, "corpora"),
    *(
        (partial(_windows, section), f"{section}.{sinks}", f"{section}.capacities")
        for section, sinks in [
            ("experiment.sink_ablation", "n_sinks"),
            ("long_stream", "n_sink"),
            ("decoding_latency", "n_sinks"),
        ]
    ),
    (partial(_windows, "paper.positions"), "long_stream.n_sink", "paper.positions.capacities"),
    (partial(_windows, "paper.sink_mass"), "paper.sink_mass.n_sink", "paper.sink_mass.capacity"),
    (_context, "paper.sink_mass.n_sink", "paper.sink_mass.context_tokens"),
    *(
        (partial(_fills, f"paper.sink_mass.{key}"), "paper.sink_mass.capacity", f"paper.sink_mass.{key}")
        for key in ("context_tokens", "stream_tokens")
    ),
    *(
        rule
        for section in ("paper.stream_eval", "tasks")
        for rule in (
            (partial(_windows, section), f"{section}.n_sink", f"{section}.capacities"),
            (partial(_asked_presses, section), f"{section}.presses"),
        )
    ),
    (partial(_windows, "tasks.batches"), "tasks.n_sink", "tasks.batches.capacity"),
    (
        partial(_fills, "tasks.batches.context_tokens"),
        "tasks.batches.capacity",
        "tasks.batches.context_tokens",
    ),
    (_hidden, "tasks.words", "tasks.samples", "tasks.candidates"),
    (
        _asked,
        "paper.stream_eval.lines",
        "paper.stream_eval.every",
        "paper.stream_eval.distances",
        "paper.stream_eval.streams",
        "paper.stream_eval.candidates",
    ),
    (partial(_windows, "paper.pretraining"), "paper.pretraining.n_sinks", "paper.pretraining.capacity"),
    (
        partial(_fills, "paper.pretraining.scored_bytes"),
        "paper.pretraining.capacity",
        "paper.pretraining.scored_bytes",
    ),
    (_pairs, "paper.pretraining.hidden", "paper.pretraining.heads"),
    (_long_run_window, "decoding_latency.n_sinks", "decoding_latency.long_run.capacity"),
    (partial(_length, "experiment", "max_eval_tokens"), "experiment"),
    (partial(_length, "long_stream", "max_eval_tokens"), "long_stream"),
    (partial(_length, "long_stream", "baseline_tokens"), "long_stream"),
    (_presses, "comparison.n_sink", "comparison.presses"),
    (_press_contexts, "comparison.presses", "comparison.context_tokens"),
    (_budgets, "comparison.budgets", "comparison.n_sink", "comparison.context_tokens"),
    (_compared_capacity, "comparison.capacity", "comparison.budgets"),
    (_compared_window, "comparison.capacity", "comparison.n_sink"),
)


def warn_beyond_training(config: Config) -> Iterator[str]:
    """Yield a line for each section with a cache beyond the model's trained length, if that is known yet.

    This is not a fault: such a cache is measured as asked, and its records contain the length.
    """
    name = config["experiment"]["model"]
    try:
        described = read_object(Path(model_folder(config, name)) / "config.json")
    except ValueError:
        return  # not made yet or damaged; the job that loads it reports that
    key = "max_position_embeddings"
    trained = _value(described, f"text_config.{key}") or _value(described, key)
    for section in CACHES if isinstance(trained, int) else ():
        capacity = _largest_cache(section, config[section])
        if capacity is not None and capacity > trained:
            yield (
                f"{section}: a cache of {capacity} tokens is beyond the {trained} that {name} is trained to; "
                "it is measured all the same, take smaller windows if that is not meant"
            )
