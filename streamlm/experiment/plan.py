"""An experiment as its config describes it: the runs that it asks for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlm.config import METHODS, Method, StreamConfig, as_asked
from streamlm.presses.grammar import compared_methods

Config = Mapping[str, Any]


def main_geometry(config: Config) -> StreamConfig:
    """Return the geometry of the main comparison."""
    experiment = config["experiment"]
    return StreamConfig(n_sink=experiment["n_sink"], window_size=experiment["window_size"])


def window_ablation(config: Config) -> list[StreamConfig]:
    """Return every point of the window ablation."""
    ablation = config["experiment"]["window_ablation"]
    return [StreamConfig(n_sink=ablation["n_sink"], window_size=size) for size in ablation["window_sizes"]]


def sink_ablation(config: Config) -> list[StreamConfig]:
    """Return every point of the sink ablation: each capacity is kept."""
    ablation = config["experiment"]["sink_ablation"]
    return [
        StreamConfig(n_sink=n_sink, window_size=capacity - n_sink)
        for capacity in ablation["capacities"]
        for n_sink in ablation["n_sinks"]
    ]


def run_label(cfg: StreamConfig) -> str:
    """Return the name of the run with this geometry; equal geometries share one run."""
    return f"sink{cfg.n_sink}_window{cfg.window_size}"


SHARED = ("window", "streaming")  # methods whose runs are points of ablations as well


def method_label(method: str, cfg: StreamConfig) -> str:
    """Return the name of the run of a method that keeps `cfg`."""
    if method == "text_positions":
        return f"text_positions_{run_label(cfg)}"
    return run_label(cfg) if method in SHARED else method


def method_labels(config: Config) -> dict[str, str]:
    """Return the run of each method of the main comparison."""
    asked, n_tokens = main_geometry(config), config["experiment"]["max_eval_tokens"]
    return {
        name: method_label(name, method.geometry(asked, n_tokens))
        for name, method in METHODS.items()
        if method.is_compared
    }


def _bounded(cfg: StreamConfig) -> Method:
    """Return the method that a bounded geometry is a point of."""
    return METHODS["streaming" if cfg.n_sink else "window"]


def plan_runs(config: Config) -> dict[str, dict[str, Any]]:
    """Return every distinct run that the experiment needs, by label.

    A run has `max_eval_tokens`, and what `measure_perplexity` takes: `method`, `cfg` as asked,
    `positions` and `compute`.
    """
    experiment, long = config["experiment"], config["long_stream"]
    n_tokens, n_long = experiment["max_eval_tokens"], long["max_eval_tokens"]
    n_short, main = min(long["baseline_tokens"], n_long), main_geometry(config)

    def run(method: Method, cfg: StreamConfig, n_tokens: int, **compute: Any) -> dict[str, Any]:
        return {
            "max_eval_tokens": n_tokens,
            "method": method.name,
            "cfg": {"n_sink": cfg.n_sink, "window_size": cfg.window_size},
            "positions": experiment["recompute_positions"] if method.is_sampled else 0,
            "compute": config["compute"] | compute,
        }

    def dense(n_tokens: int, **compute: Any) -> dict[str, Any]:
        method = METHODS["dense"]
        return run(method, method.geometry(main, n_tokens), n_tokens, **compute)

    runs = {"dense": dense(n_tokens)}
    for name in method_labels(config):
        if name not in ("dense", *SHARED):
            runs[name] = run(METHODS[name], main, n_tokens)
    shared = [METHODS[name].geometry(main, n_tokens) for name in SHARED]
    for cfg in (*shared, *window_ablation(config), *sink_ablation(config)):
        runs[run_label(cfg)] = run(_bounded(cfg), cfg, n_tokens)
    runs["long_dense"] = dense(n_short, dtype=long["dtype"])
    for cfg in long_stream(config):
        length = n_long if cfg.n_sink else n_short
        runs[f"long_{run_label(cfg)}"] = run(_bounded(cfg), cfg, length, dtype=long["dtype"])
    runs["long_recompute"] = run(METHODS["recompute"], long_stream(config)[-1], n_long, dtype=long["dtype"])
    runs["long_recompute"] |= {"positions": config["paper"]["recompute_positions"]}
    for cfg in (geometries := positions_geometries(config)):
        in_text = run(METHODS["text_positions"], cfg, n_long, dtype=long["dtype"])
        runs[f"long_{run_label(cfg)}"] = run(_bounded(cfg), cfg, n_long, dtype=long["dtype"])
        runs[f"long_{method_label('text_positions', cfg)}"] = in_text
    smallest, yarn = f"text_positions_{run_label(geometries[0])}", config["paper"]["positions"]["yarn"]
    if yarn is not None:
        runs[f"long_yarn_{smallest}"] = runs[f"long_{smallest}"] | {"yarn": yarn}
    return runs


def long_stream(config: Config) -> list[StreamConfig]:
    """Return every bounded run of the long stream: window-only at the largest capacity, then streaming."""
    long = config["long_stream"]
    sizes = [(0, max(long["capacities"])), *((long["n_sink"], size) for size in sorted(long["capacities"]))]
    return [StreamConfig(n_sink=n_sink, window_size=size - n_sink) for n_sink, size in sizes]


def positions_geometries(config: Config) -> list[StreamConfig]:
    """Return what is scored with positions in the cache and in the text, along the long stream."""
    n_sink = config["long_stream"]["n_sink"]
    sizes = sorted(config["paper"]["positions"]["capacities"])
    return [StreamConfig(n_sink=n_sink, window_size=size - n_sink) for size in sizes]


def positions_labels(config: Config) -> dict[str, list[str]]:
    """Return the runs with positions in the cache and in the text; the smallest, last, is stretched too."""
    geometries = positions_geometries(config)
    in_text = [f"long_{method_label('text_positions', cfg)}" for cfg in geometries]
    if config["paper"]["positions"]["yarn"] is not None:
        in_text.append(f"long_yarn_{method_label('text_positions', geometries[0])}")
    return {"in_cache": [f"long_{run_label(cfg)}" for cfg in geometries], "in_text": in_text}


def methods_along_labels(config: Config) -> list[str]:
    """Return the runs of every method along the long stream, streaming last."""
    largest = long_stream(config)[-1]
    window = METHODS["window"].geometry(largest, 0)
    return ["long_dense", f"long_{run_label(window)}", "long_recompute", f"long_{run_label(largest)}"]


def results_of(config: Config, model: str) -> str:
    """Return the folder of the results of a model; for another than the experiment's, one inside of it."""
    results: str = config["results_dir"]
    return results if model == config["experiment"]["model"] else f"{results}/models/{model}"


def sink_mass_sizes(config: Config) -> dict[str, int]:
    """Return what is read there, as `SinkMassConfig` takes it."""
    return {key: value for key, value in config["paper"]["sink_mass"].items() if key != "dtype"}


def twin_settings(config: Config, *keys: str) -> dict[str, Any]:
    """Return some settings of the twins, as `TwinShape`, `Training` and `TwinSinks` take them."""
    return {key: config["paper"]["pretraining"][key] for key in keys}


KEPT = ("n_sink", "capacities", "presses")  # what `ComparedCaches` takes


def stream_eval_settings(config: Config) -> dict[str, Any]:
    """Return the streams of StreamEval, as `StreamText` takes them, and what is kept of them."""
    return _task_settings(config["paper"]["stream_eval"])


def retrieval_settings(config: Config) -> dict[str, Any]:
    """Return the texts of the tasks, as `RetrievalText` takes them, and what is kept of them."""
    others = ("dtype", "batches")
    return _task_settings({key: value for key, value in config["tasks"].items() if key not in others})


def batch_settings(config: Config) -> dict[str, Any]:
    """Return the batches whose decoding is timed, as `measure_batches` takes them."""
    batch = {key: value for key, value in config["tasks"]["batches"].items() if key != "sizes"}
    kept = {key: config["tasks"][key] for key in ("n_sink", "presses")}
    return {**kept, "sizes": config["tasks"]["batches"]["sizes"], "batch": batch}


def _task_settings(settings: Config) -> dict[str, Any]:
    task = {key: value for key, value in settings.items() if key not in KEPT}
    return {"task": task, "kept": {key: settings[key] for key in KEPT}}


def long_stream_labels(config: Config) -> list[str]:
    """Return the runs of the long stream."""
    return ["long_dense", *(f"long_{run_label(cfg)}" for cfg in long_stream(config))]


def latency_label(method: str, capacity: int | str, n_sink: int) -> str:
    """Return the name of a latency record."""
    return f"{method}_{capacity}_sink{n_sink}"


def latency_settings(config: Config) -> dict[str, int]:
    """Return how much is decoded where latency is measured, as `LatencyConfig` takes it."""
    latency = config["decoding_latency"]
    keys = ("warmup_tokens", "timed_tokens", "recompute_tokens", "runs", "compile")
    return {key: latency[key] for key in keys}


def latency_cases(config: Config) -> list[tuple[str, int]]:
    """Return (method, n_sink) of everything whose decoding is timed at each capacity, in turns."""
    return [
        (method.name, n_sink)
        for method in METHODS.values()
        if method.is_timed
        for n_sink in (config["decoding_latency"]["n_sinks"] if method.geometry is as_asked else [0])
    ]


def long_run_geometry(config: Config) -> dict[str, int]:
    """Return the geometry of the long run of decoding, as `StreamConfig` takes it."""
    latency = config["decoding_latency"]
    n_sink = latency["n_sinks"][0]
    return {"n_sink": n_sink, "window_size": latency["long_run"]["capacity"] - n_sink}


def plan_comparison(config: Config) -> dict[str, dict[str, Any]]:
    """Return every method that is compared with kvpress, by label, as options of `measure_compression`."""
    comparison = config["comparison"]
    sizes = {key: comparison[key] for key in ("n_sink", "budgets")}
    methods = compared_methods(comparison["n_sink"], comparison["presses"])
    return {label: {"method": method, **sizes} for label, method in methods.items()}


def compared_contexts(config: Config) -> dict[str, int]:
    """Return how much is read and scored there, as `ContextConfig` takes it."""
    return {key: config["comparison"][key] for key in ("contexts", "context_tokens", "scored_tokens")}


def compared_decoding(config: Config) -> dict[str, int]:
    """Return what is decoded there, as `DecodeConfig` takes it."""
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

    The time stamp of a folder does not show that a file in it was overwritten.
    """
    folder = Path(model_folder(config, name))
    if folder != Path(source_file(config, "models", name)):
        return []
    return [str(file) for file in sorted(folder.iterdir()) if file.suffix in MODEL_FILES]
