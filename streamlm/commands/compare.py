"""`compare`: the same measurements under NVIDIA kvpress."""

from functools import partial
from typing import Annotated, Any

import typer

from streamlm.commands.options import (
    CACHE,
    PACKAGED,
    TEXT,
    AsJson,
    DatasetConfig,
    DatasetName,
    DatasetSplit,
    Device,
    Dtype,
    MaxSamples,
    ModelName,
    Output,
    TextFile,
    TokenFile,
    WindowSize,
    check_targets,
    open_stream,
    print_json,
)
from streamlm.presses.grammar import PRESSES, check_budgets, compared_methods

COMPARED = ["KnormPress", "SnapKVPress", "TOVAPress", "ExpectedAttentionPress", "RandomPress"]


def compare(
    model_name: ModelName = PACKAGED,
    dataset_name: DatasetName = None,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    text: TextFile = None,
    tokens: TokenFile = None,
    max_samples: MaxSamples = None,
    max_eval_tokens: Annotated[
        int,
        typer.Option(
            min=6, help="Take so many ids: a fifth is scored behind the others.", rich_help_panel=TEXT
        ),
    ] = 1281,
    n_sink: Annotated[int, typer.Option(min=1, help="First tokens kept.", rich_help_panel=CACHE)] = 4,
    window_size: WindowSize = 252,
    press: Annotated[
        list[str],
        typer.Option(
            help="A press of kvpress; any number of times.",
            autocompletion=lambda: list(PRESSES),
            rich_help_panel=CACHE,
        ),
    ] = COMPARED,
    interval: Annotated[
        int,
        typer.Option(
            min=1, help="Decoded tokens between two evictions of kvpress as it is.", rich_help_panel=CACHE
        ),
    ] = 8,
    dtype: Dtype = "float32",
    device: Device = "auto",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Compare with NVIDIA kvpress at equal budgets: a context cut once, and token by token."""
    check_targets(output)
    from tabulate import tabulate

    from streamlm.measure.progress import progress
    from streamlm.presses.decoding import DecodeConfig, measure_decoding
    from streamlm.presses.prefill import ContextConfig, measure_compression
    from streamlm.records.files import write_json
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import Run
    from streamlm.summaries.presses import (
        COMPARISON_HEADERS,
        collect_comparison,
        comparison_rows,
        findings,
        refusals,
    )

    capacity, methods = n_sink + window_size, compared_methods(n_sink, press)
    model_dir, title, ids, dataset = open_stream(
        model_name, dataset_name, dataset_config, dataset_split, text, tokens, max_samples
    )
    ids = ids[:max_eval_tokens]
    scored = (len(ids) - 1) // 5
    contexts = ContextConfig(contexts=1, context_tokens=len(ids) - 1 - scored, scored_tokens=scored)
    check_budgets([capacity], n_sink, contexts.context_tokens)
    decode = DecodeConfig(capacity=capacity, tokens=min(scored, len(ids) - capacity), interval=interval)
    same: Any = {
        "model_dir": model_dir, "title": title, "texts": {dataset: ids}, "n_sink": n_sink, "dtype": dtype,
        "device": device, "bootstrap": BootstrapConfig(),
    }  # fmt: skip
    measure = partial(measure_compression, contexts=contexts, budgets=[capacity], **same)
    runs = {}
    with progress(len(methods) + 1, "method") as bar:
        for label, method in methods.items():
            runs[label] = Run(*measure(method=method))
            bar.update()
        decoding = Run(*measure_decoding(decode=decode, **same))
        bar.update()
    _, comparison, _ = collect_comparison(runs, decoding, dataset, capacity, same["bootstrap"])
    if output is not None:
        write_json(output, comparison)
    if as_json:
        print_json(comparison)
        return
    rows = comparison_rows([comparison])
    typer.echo(tabulate(rows, COMPARISON_HEADERS, "github", disable_numparse=True))
    for line in (*refusals(comparison), *findings(comparison)):
        typer.echo(line)
