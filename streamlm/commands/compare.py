"""`compare`: the same measurements under NVIDIA kvpress."""

from typing import Annotated

import typer

from streamlm.commands.options import (
    CACHE,
    TEXT,
    ComputeOptions,
    OutputOptions,
    SourceOptions,
    WindowSize,
    check_targets,
    grouped,
)
from streamlm.presses.grammar import PRESSES, check_budgets, compared_methods

COMPARED = ["KnormPress", "SnapKVPress", "TOVAPress", "ExpectedAttentionPress", "RandomPress"]


@grouped
def compare(
    source: SourceOptions,
    compute: ComputeOptions,
    output: OutputOptions,
    max_eval_tokens: Annotated[
        int,
        typer.Option(
            min=6, help="Take so many ids: a fifth is scored after the others.", rich_help_panel=TEXT
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
) -> None:
    """Compare with NVIDIA kvpress at equal budgets: a context cut once, and token by token."""
    check_targets(output.output)
    from streamlm.measure.progress import progress
    from streamlm.presses.decoding import DecodeConfig, measure_decoding
    from streamlm.presses.prefill import ContextConfig, measure_compression
    from streamlm.presses.setting import Setting
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import Run
    from streamlm.summaries.presses import collect_comparison, comparison_text

    capacity, methods = n_sink + window_size, compared_methods(n_sink, press)
    stream, bootstrap = source.open(max_eval_tokens), BootstrapConfig()
    n_ids = len(stream.ids)
    scored = (n_ids - 1) // 5
    contexts = ContextConfig(contexts=1, context_tokens=n_ids - 1 - scored, scored_tokens=scored)
    check_budgets([capacity], n_sink, contexts.context_tokens)
    decode = DecodeConfig(capacity=capacity, tokens=min(scored, n_ids - capacity), interval=interval)
    setting = Setting(
        model_dir=stream.model_dir,
        title=stream.title,
        texts={stream.dataset: stream.ids},
        compute=compute.compute,
        bootstrap=bootstrap,
    )
    runs = {}
    with progress(len(methods) + 1, "method") as bar:
        for label, method in methods.items():
            runs[label] = Run(
                *measure_compression(
                    setting, method=method, contexts=contexts, n_sink=n_sink, budgets=[capacity]
                )
            )
            bar.update()
        decoding = Run(*measure_decoding(setting, n_sink=n_sink, decode=decode))
        bar.update()
    _, comparison, _ = collect_comparison(runs, decoding, stream.dataset, capacity, bootstrap)
    output.show(comparison, lambda: comparison_text(comparison))
