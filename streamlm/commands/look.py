"""`info` and `figures`: what a model's cache costs, and what records show; nothing is measured."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamlm.commands.options import (
    CACHE,
    COMPUTE,
    OUTPUT,
    PACKAGED,
    ROLES,
    AsJson,
    ModelName,
    NSink,
    Storage,
    find_model,
    print_json,
)

if TYPE_CHECKING:
    from streamlm.cache.footprint import Layout

WINDOWS, CONTEXTS = [252, 508, 1020, 2044, 4092], [4096, 32_768, 131_072, 1_000_000]
MIB = 2**20
MAY_SERVE = "its config does not rule it out; loading the model decides"


def info(
    model_name: ModelName = PACKAGED,
    n_sink: NSink = 4,
    window_size: Annotated[
        list[int], typer.Option(min=1, help="Any number of times.", rich_help_panel=CACHE)
    ] = WINDOWS,
    storage: Storage = None,
    context: Annotated[
        list[int],
        typer.Option(
            min=1, help="Tokens of text, to compare with dense; any number of times.", rich_help_panel=CACHE
        ),
    ] = CONTEXTS,
    dtype: Annotated[
        str | None, typer.Option(help="Of the cache; as the weights if not given.", rich_help_panel=COMPUTE)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell a model's layout, its KV bytes per token, and what windows cost and save."""
    model_dir, _ = find_model(model_name)
    from dataclasses import asdict

    from streamlm.cache.footprint import describe_costs, describe_layout, read_config
    from streamlm.cache.ring import parse_storage
    from streamlm.config import StreamConfig
    from streamlm.measure.device import parse_dtype

    layout = describe_layout(read_config(model_dir))
    sizes = [StreamConfig(n_sink=n_sink, window_size=size) for size in window_size]
    held = parse_dtype(dtype or layout.dtype)
    narrow = None if storage is None else parse_storage(storage)
    costs = describe_costs(layout, sizes, context, held, narrow)
    if as_json:
        about = {"dtype": str(held).removeprefix("torch."), "storage": storage, **costs}
        print_json({"model": str(model_name), "layout": asdict(layout), "cache": about})
        return
    for line in _layout_lines(layout, model_name, costs):
        typer.echo(line)
    typer.echo(_cost_table(layout, costs))


def _layout_lines(layout: "Layout", model_name: Path, costs: dict[str, Any]) -> list[str]:
    sliding = len(layout.sliding_windows)
    theta = "" if layout.rotary_theta is None else f", base {layout.rotary_theta:,.0f}"
    about = {
        "model": f"{model_name}, a {layout.model_type}",
        "layers": f"{layout.layers}" + (f", {sliding} of them with a sliding window" if sliding else ""),
        "heads": f"{layout.heads} of queries, {layout.kv_heads} of keys and values; size {layout.head_size}",
        "rotary": f"{layout.rotary}{theta}, {layout.rotary_size} of {layout.head_size} features of a head",
        "trained to": f"{layout.trained_length:,} positions" if layout.trained_length else "not told",
        "vocabulary": f"{layout.vocabulary:,}",
        "weights": layout.dtype,
        "keys and values": f"{costs['kv_bytes_per_token']:,} bytes a token",
        "SinkCache": f"refuses it: {layout.refused}" if layout.refused else MAY_SERVE,
    }
    return [f"{name + ':':<17}{told}" for name, told in about.items()] + [""]


def _cost_table(layout: "Layout", costs: dict[str, Any]) -> str:
    """Return the table: bytes of every cache, and how many times those of a dense one are at each length."""
    from tabulate import tabulate

    headers = ("kept", "MiB", *(f"dense at {dense['context_tokens']:,} tokens" for dense in costs["dense"]))
    rows = [("all", "grows", *(f"{dense['kv_bytes'] / MIB:,.1f} MiB" for dense in costs["dense"]))]
    for cache in costs["caches"]:
        beyond = layout.trained_length is not None and cache["capacity"] > layout.trained_length
        name = f"{cache['n_sink']}+{cache['window_size']}{' (past the trained length)' if beyond else ''}"
        times = (f"{part['dense_over_this']:,.1f} times" for part in cache["against_dense"])
        rows.append((name, f"{cache['kv_bytes'] / MIB:,.1f}", *times))
    return str(tabulate(rows, headers, "github", disable_numparse=True, stralign="right"))


def figures(
    results_dir: Annotated[
        Path, typer.Option(help="Where the workflow wrote its records.", rich_help_panel=OUTPUT)
    ] = Path("results"),
    output_dir: Annotated[
        Path, typer.Option(help="Write the figures here, .png.", rich_help_panel=OUTPUT)
    ] = Path("figures"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw this one; any number of times.",
            autocompletion=lambda: list(FIGURES),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Draw the figures again from the records of a results folder; nothing is measured."""
    unknown = [name for name in only or [] if name not in FIGURES]
    if unknown:
        raise typer.BadParameter(f"unknown figure {unknown[0]!r}; known are {', '.join(FIGURES)}")
    from streamlm.figures.style import save_figure

    drawn = 0
    for name, (pattern, draw) in FIGURES.items():
        if only and name not in only:
            continue
        found = sorted(results_dir.glob(pattern), key=_text_first)
        if found:
            target = output_dir / f"{name}.png"
            try:
                figure = draw(found)
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{name} cannot be drawn: a record among {results_dir / pattern} is of another version "
                    f"of streamlm, or none ({error!r}); measure again"
                ) from error
            save_figure(target, figure)
            typer.echo(str(target))
            drawn += 1
        else:
            typer.echo(f"{name} is left out: there is no {results_dir / pattern}", err=True)
    if not drawn:
        raise ValueError(f"no figure could be drawn from {results_dir}; give the --results-dir of a workflow")


def _text_first(path: Path) -> tuple[int, str]:
    """Order records as the packaged experiment names its texts, others behind them."""
    role = path.name.partition("_")[0]
    return (ROLES.index(role) if role in ROLES else len(ROLES)), path.name


Draw = Callable[[list[Path]], Any]


def _from_all(module: str, function: str) -> Draw:
    """Return a drawing of all records together."""

    def draw(paths: list[Path]) -> Any:
        from importlib import import_module

        from streamlm.records.files import read_record

        return getattr(import_module(f"streamlm.{module}"), function)([read_record(path) for path in paths])

    return draw


def _ablation(kind: str) -> Draw:
    def draw(paths: list[Path]) -> Any:
        from streamlm.figures import main as figures
        from streamlm.records.files import read_record

        return getattr(figures, f"plot_ablation_{kind}")(read_record(paths[0]))

    return draw


def _latency(paths: list[Path]) -> Any:
    from streamlm.figures.latency import plot_decoding_latency
    from streamlm.records.files import read_record

    (long_run,) = paths
    others = [read_record(path) for path in long_run.parent.glob("decoding_latency_*_sink*.json")]
    # Of equal size, the first is drawn.
    others.sort(key=lambda record: (record["capacity"], record["n_sink"]))
    return plot_decoding_latency(others, read_record(long_run))


# Of each figure: the records that it is drawn from, and how.
FIGURES: dict[str, tuple[str, Draw]] = {
    "schemes": ("streaming_llm/*_result.json", _from_all("scheme_figure", "plot_schemes")),
    "main_comparison": ("streaming_llm/*_result.json", _from_all("figures", "plot_main_comparison")),
    "results_summary": ("streaming_llm/*_result.json", _from_all("figures", "plot_results_summary")),
    "ablation_window_size": ("streaming_llm/ablation_window_size.json", _ablation("window_size")),
    "ablation_n_sink": ("streaming_llm/ablation_n_sink.json", _ablation("n_sink")),
    "long_stream": ("streaming_llm/*_long_stream.json", _from_all("figures", "plot_long_stream")),
    "decoding_latency": ("decoding_latency_long_run.json", _latency),
    "implementation_comparison": (
        "kvpress/*_comparison.json",
        _from_all("comparison_figures", "plot_implementation_comparison"),
    ),
    "comparison_metrics_table": (
        "kvpress/*_comparison.json",
        _from_all("comparison_figures", "plot_comparison_metrics_table"),
    ),
    "press_sweep": ("kvpress/*_comparison.json", _from_all("comparison_figures", "plot_press_sweep")),
}
