"""`info`: how a model is laid out, whether it can be served, and what its cache costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from streamlm.commands.inputs import find_model
from streamlm.commands.options import (
    PACKAGED,
    AsJson,
    KvDtype,
    ModelName,
    NSink,
    cache_option,
    compute_option,
    print_json,
)
from streamlm.commands.terminal import say

if TYPE_CHECKING:
    from streamlm.cache.footprint import Layout

WINDOWS, CONTEXTS = [252, 508, 1020, 2044, 4092], [4096, 32_768, 131_072, 1_000_000]
MIB = 2**20
MAY_SERVE = "its config does not rule it out; loading the model decides"


def info(
    *,
    model_name: ModelName = PACKAGED,
    n_sink: NSink = 4,
    window_size: Annotated[
        list[int], cache_option(min=1, help="A window to show; any number of times.")
    ] = WINDOWS,
    kv_dtype: KvDtype = None,
    context: Annotated[
        list[int],
        cache_option(min=1, help="Tokens of text, to compare with dense; any number of times."),
    ] = CONTEXTS,
    dtype: Annotated[
        str | None, compute_option(help="Number type of the cache; that of the weights if not given.")
    ] = None,
    check: Annotated[
        bool, compute_option(help="Load the weights, if they are there, and ask every layer how it rotates.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show a model's layout, its KV bytes per token, and what windows cost and save."""
    model_dir, _ = find_model(model_name)
    from dataclasses import asdict

    from streamlm.cache.footprint import describe_costs, describe_layout
    from streamlm.cache.ring import parse_kv_dtype
    from streamlm.cache.stored import read_config
    from streamlm.config import StreamConfig
    from streamlm.measure.device import parse_dtype

    layout = describe_layout(read_config(model_dir))
    sizes = [StreamConfig(n_sink=n_sink, window_size=size) for size in window_size]
    cache_dtype = parse_dtype(dtype or layout.dtype)
    costs = describe_costs(layout, sizes, context, cache_dtype, parse_kv_dtype(kv_dtype))
    verdict = _verdict(model_dir, layout, check)
    if as_json:
        about = {"dtype": str(cache_dtype).removeprefix("torch."), "storage": kv_dtype, **costs}
        document = {"model": str(model_name), "layout": asdict(layout), "verdict": verdict, "cache": about}
        print_json(document)
        return
    for line in _layout_lines(layout, model_name, costs, verdict):
        say(line)
    say(_cost_table(layout, costs))


def _verdict(model_dir: Path, layout: "Layout", check: bool) -> str:
    """Return whether `SinkCache` is exact for a model, and how its layers rotate, or why it is refused."""
    if layout.refused:
        return f"refuses it: {layout.refused}"
    if not (check and any(model_dir.glob("*.safetensors"))):
        return MAY_SERVE
    from streamlm.cache.models import load_model
    from streamlm.cache.probe import describe_rotations
    from streamlm.measure.device import parse_dtype

    try:
        model = load_model(model_dir, dtype=parse_dtype(layout.dtype))
    except ValueError as error:
        return f"refuses it: {error}"
    return f"exact; {describe_rotations(model)}"


def _layout_lines(layout: "Layout", model_name: Path, costs: Mapping[str, Any], verdict: str) -> list[str]:
    kinds = {
        "a sliding window": len(layout.sliding_windows),
        "a state of fixed size, which is not counted here": layout.state_layers,
    }
    special = [f"{count} of them with {kind}" for kind, count in kinds.items() if count]
    theta = "" if layout.rotary_theta is None else f", base {layout.rotary_theta:,.0f}"
    about = {
        "model": f"{model_name}, a {layout.model_type}",
        "layers": ", ".join([str(layout.layers), *special]),
        "heads": f"{layout.heads} of queries, {layout.kv_heads} of keys and values; size {layout.head_size}",
        "rotary": f"{layout.rotary}{theta}, {layout.rotary_size} of {layout.head_size} features of a head",
        "trained to": f"{layout.trained_length:,} positions" if layout.trained_length else "not known",
        "vocabulary": f"{layout.vocabulary:,}",
        "weights": layout.dtype,
        "keys and values": f"{costs['kv_bytes_per_token']:,} bytes a token",
        "SinkCache": verdict,
    }
    return [f"{name + ':':<17}{value}" for name, value in about.items()] + [""]


def _cost_table(layout: "Layout", costs: Mapping[str, Any]) -> str:
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
