"""An experiment as its config describes it: the runs that it asks for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlm.config import method_geometry
from streamlm.presses.grammar import compared_methods

Config = Mapping[str, Any]


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


MODEL_FILES = {".json", ".safetensors", ".model", ".txt"}  # the last two: tokenizers of an older kind


def model_files(config: Config, name: str) -> list[str]:
    """Return the files of a user's own model folder, whose change must be noticed; none for one made here.

    A folder's own time stamp does not tell when a file in it was overwritten.
    """
    folder = Path(model_folder(config, name))
    if folder != Path(source_file(config, "models", name)):
        return []
    return [str(file) for file in sorted(folder.iterdir()) if file.suffix in MODEL_FILES]
