"""An experiment as its config describes it: the check of the config, and the runs that it asks for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from streamlm.config import method_geometry
from streamlm.presses import check_budgets, compared_methods

Config = Mapping[str, Any]
SCHEMA = Path(__file__).resolve().parent.parent / "workflow" / "schemas" / "config.schema.yaml"


# JSON takes 4.0 for an integer; in a label or a size it is not.
Validator: Any = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def check_config(config: Config) -> None:
    """Raise ValueError with every fault of a config, one line each: key, value, rule, remedy."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    errors = Validator(schema).iter_errors(config)
    faults = [line for error in errors for line in _fault(error)]
    faults = sorted(set(faults)) or list(_contradictions(config))
    if faults:
        raise ValueError("the config has faults:\n" + "\n".join(f"  {line}" for line in faults))


def _fault(error: jsonschema.ValidationError) -> Iterator[str]:
    key = ".".join(map(str, error.absolute_path)) or "config"
    value: Any = error.instance
    rule: Any = error.validator_value
    match error.validator:
        case "additionalProperties":
            schema: Any = error.schema
            known = sorted(schema["properties"])
            for name in sorted(set(value) - set(known), key=str):
                yield f"{key}: unknown key {name!r}; known are {', '.join(known)}"
        case "required":
            yield f"{key}: {error.message.replace(' is a required property', ' is missing; add it')}"
        case "type":
            numeric = "integer" in rule or "number" in rule
            hint = "; write digits without quotes (YAML reads 1e3 as text)" if numeric else ""
            yield f"{key}: {value!r} must be of type {rule}{hint}"
        case "enum":
            yield f"{key}: {value!r} is not known; use one of {', '.join(map(str, rule))}"
        case "minimum":
            yield f"{key}: {value!r} is too small; use {rule} or more"
        case _:
            yield f"{key}: {error.message}"


def _contradictions(config: Config) -> Iterator[str]:
    """Yield what no schema can say: names that lead nowhere, sizes that contradict each other."""
    experiment = config["experiment"]
    for kind, names in (("models", [experiment["model"]]), ("corpora", experiment["corpora"])):
        for name in names:
            if name not in config[kind]:
                known = ", ".join(config[kind])
                yield f"experiment: {name!r} is not under {kind}; use one of {known}, or add it there"
    for kind in ("models", "corpora"):
        for name, entry in config[kind].items():
            path = entry["source"].get("path")
            used = name == experiment["model"] or name in experiment["corpora"]
            if used and path is not None and not Path(path).exists():
                yield f"{kind}.{name}.source.path: there is no {path}; correct it or make it"
    titles = [config["corpora"][name]["title"] for name in experiment["corpora"] if name in config["corpora"]]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        yield f"corpora: two are titled {title!r}; give each text a name of its own"
    for name, corpus in config["corpora"].items():
        if "format" not in corpus["source"]:
            yield f"corpora.{name}.source: 'format' is missing; use mediawiki, gutenberg or text"
    sinks = experiment["sink_ablation"]
    for capacity in sinks["capacities"]:
        if capacity <= max(sinks["n_sinks"]):
            yield (
                f"experiment.sink_ablation: capacity {capacity} leaves no window beside "
                f"{max(sinks['n_sinks'])} sinks; raise it or lower n_sinks"
            )
    main = (experiment["n_sink"], experiment["window_size"])
    largest = {
        "experiment": max(map(sum, [main, *window_ablation(config), *sink_ablation(config)])),
        "long_stream": max(config["long_stream"]["capacities"]),
    }
    for section, key in (
        ("experiment", "max_eval_tokens"),
        ("long_stream", "max_eval_tokens"),
        ("long_stream", "baseline_tokens"),
    ):
        n_tokens, capacity = config[section][key], largest[section]
        if capacity >= n_tokens - 1:
            yield (
                f"{section}.{key}: {n_tokens} tokens never fill the largest cache, {capacity}; raise it or "
                "take smaller windows"
            )
    long, latency = config["long_stream"], config["decoding_latency"]
    for section, n_sink, capacity in (
        ("long_stream", long["n_sink"], min(long["capacities"])),
        ("decoding_latency", max(latency["n_sinks"]), min(latency["capacities"])),
        ("decoding_latency.long_run", latency["n_sinks"][0], latency["long_run"]["capacity"]),
    ):
        if capacity <= n_sink:
            yield (
                f"{section}: capacity {capacity} leaves no window beside {n_sink} sinks; raise it or take "
                "fewer sinks"
            )
    yield from _comparison_contradictions(config["comparison"])


def _comparison_contradictions(comparison: Config) -> Iterator[str]:
    try:
        compared_methods(comparison["n_sink"], comparison["presses"])
    except ValueError as error:
        yield f"comparison.presses: {error}"
    if comparison["capacity"] not in comparison["budgets"]:
        yield f"comparison.capacity: {comparison['capacity']} must be one of the budgets; add it there"
    try:
        check_budgets(comparison["budgets"], comparison["n_sink"], comparison["context_tokens"])
    except ValueError as error:
        yield f"comparison.budgets: {error}"
    if comparison["capacity"] == comparison["n_sink"] + 1:
        yield (
            f"comparison.capacity: {comparison['capacity']} leaves no window beside {comparison['n_sink']} "
            "sinks and the token that is decoded; raise it"
        )


def window_ablation(config: Config) -> list[tuple[int, int]]:
    """Return (n_sink, window_size) of every point of the window ablation."""
    ablation = config["experiment"]["window_ablation"]
    return [(ablation["n_sink"], window_size) for window_size in ablation["window_sizes"]]


def sink_ablation(config: Config) -> list[tuple[int, int]]:
    """Return (n_sink, window_size) of every point of the sink ablation: each capacity is held fixed."""
    ablation = config["experiment"]["sink_ablation"]
    return [
        (n_sink, capacity - n_sink) for capacity in ablation["capacities"] for n_sink in ablation["n_sinks"]
    ]


def run_label(n_sink: int, window_size: int) -> str:
    """Return the name of the run with this geometry; equal geometries share one run."""
    return f"sink{n_sink}_window{window_size}"


def method_labels(config: Config) -> dict[str, str]:
    """Return the run of each method of the main comparison."""
    main = (config["experiment"]["n_sink"], config["experiment"]["window_size"])
    window = method_geometry("window", *main, n_tokens=0)
    return {
        "dense": "dense",
        "window": run_label(window.n_sink, window.window_size),
        "recompute": "recompute",
        "streaming": run_label(*main),
    }


def plan_runs(config: Config) -> dict[str, dict[str, Any]]:
    """Return every distinct run that the experiment needs, by label.

    A run is `max_eval_tokens`, and `options` of `perplexity.measure_perplexity`.
    """
    experiment, long = config["experiment"], config["long_stream"]
    main = (experiment["n_sink"], experiment["window_size"])
    window = method_geometry("window", *main, n_tokens=0)
    sizes = [(window.n_sink, window.window_size), main, *window_ablation(config), *sink_ablation(config)]
    n_tokens, n_long = experiment["max_eval_tokens"], long["max_eval_tokens"]

    def run(method: str, n_sink: int, window_size: int, n_tokens: int, **changes: Any) -> dict[str, Any]:
        options = {"method": method, "n_sink": n_sink, "window_size": window_size}
        return {"max_eval_tokens": n_tokens, "options": options | config["compute"] | changes}

    runs = {
        "dense": run("dense", 0, n_tokens, n_tokens),
        "recompute": run("recompute", *main, n_tokens, positions=experiment["recompute_positions"]),
    }
    for size in sizes:
        runs[run_label(*size)] = run("streaming" if size[0] else "window", *size, n_tokens)
    n_short = min(long["baseline_tokens"], n_long)
    runs["long_dense"] = run("dense", 0, n_short, n_short, dtype=long["dtype"])
    for size in long_stream(config):
        method, n_tokens = ("streaming", n_long) if size[0] else ("window", n_short)
        runs[f"long_{run_label(*size)}"] = run(method, *size, n_tokens, dtype=long["dtype"])
    return runs


def long_stream(config: Config) -> list[tuple[int, int]]:
    """Return (n_sink, window_size) of every bounded run of the long stream."""
    long = config["long_stream"]
    streaming = [(long["n_sink"], capacity - long["n_sink"]) for capacity in sorted(long["capacities"])]
    return [(0, max(long["capacities"])), *streaming]


def long_stream_labels(config: Config) -> list[str]:
    """Return the runs of the long stream."""
    return ["long_dense", *(f"long_{run_label(*size)}" for size in long_stream(config))]


def latency_label(method: str, capacity: int | str, n_sink: int) -> str:
    """Return the name of a latency record."""
    return f"{method}_{capacity}_sink{n_sink}"


def latency_settings(config: Config) -> dict[str, int]:
    """Return how much is decoded where latency is measured, as `latency.LatencyConfig` takes it."""
    latency = config["decoding_latency"]
    return {key: latency[key] for key in ("warmup_tokens", "timed_tokens", "recompute_tokens", "runs")}


def latency_sides(config: Config) -> list[tuple[str, int]]:
    """Return (method, n_sink) of everything whose decoding is timed at each capacity, in turns."""
    others = [("dense", 0), ("window", 0), ("recompute", 0)]
    return [*others, *(("streaming", n_sink) for n_sink in config["decoding_latency"]["n_sinks"])]


def plan_comparison(config: Config) -> dict[str, dict[str, Any]]:
    """Return every method that is compared with kvpress, by label, as options of `measure_compression`."""
    comparison = config["comparison"]
    sizes = {key: comparison[key] for key in ("n_sink", "budgets")}
    methods = compared_methods(comparison["n_sink"], comparison["presses"])
    return {label: {"method": method, **sizes} for label, method in methods.items()}


def compared_contexts(config: Config) -> dict[str, int]:
    """Return how much is read and scored there, as `compression.ContextConfig` takes it."""
    return {key: config["comparison"][key] for key in ("contexts", "context_tokens", "scored_tokens")}


def compared_decoding(config: Config) -> dict[str, int]:
    """Return what is decoded there, as `decode_comparison.DecodeConfig` takes it."""
    return {"capacity": config["comparison"]["capacity"], **config["comparison"]["decode"]}


def names_from(config: Config, kind: str, *, hub: bool) -> str:
    """Return a pattern of the names under `kind` that come from a hub, or of those that do not."""
    names = [name for name, entry in config[kind].items() if (entry["source"]["kind"] == "hub") == hub]
    return "|".join(names) or "(?!)"  # which matches nothing


def source_file(config: Config, kind: str, name: str) -> str:
    """Return the file that a model or corpus is made from: the fetched archive, or the user's own path."""
    source = config[kind][name]["source"]
    if source["kind"] == "path":
        return str(source["path"])
    return f"data/archives/{kind}/{name}"


def model_folder(config: Config, name: str) -> str:
    """Return the transformers folder of a model: the user's own, or the one made under data/models."""
    source = config["models"][name]["source"]
    if source["kind"] == "path" and not source["path"].endswith(".gguf"):
        return str(source["path"])
    return f"data/models/{name}"


def model_files(config: Config, name: str) -> list[str]:
    """Return the files of a user's own model folder, whose change must be noticed; none for one made here.

    A folder's own time stamp does not tell when a file in it was overwritten.
    """
    folder = Path(model_folder(config, name))
    if folder != Path(source_file(config, "models", name)):
        return []
    return [str(file) for file in sorted(folder.iterdir()) if file.suffix in {".json", ".safetensors"}]
