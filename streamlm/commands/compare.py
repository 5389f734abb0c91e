"""`compare`: the same measurements under NVIDIA kvpress."""

from typing import TYPE_CHECKING, Annotated

from streamlm.commands.inputs import Inputs, open_inputs
from streamlm.commands.options import (
    ComputeOptions,
    OutputOptions,
    SampleOptions,
    WindowSize,
    cache_option,
    text_option,
)
from streamlm.commands.output_types import RECORD
from streamlm.config import Compute, StreamConfig
from streamlm.presses.grammar import OURS, PRESSES, check_context, compared_methods, parse_press

if TYPE_CHECKING:
    from streamlm.records.types import Record

COMPARED = ["KnormPress", "SnapKVPress", "TOVAPress", "ExpectedAttentionPress", "RandomPress"]


def compare(
    *,
    source: SampleOptions,
    max_eval_tokens: Annotated[
        int | None,
        text_option(
            min=6,
            help="Read at most this many token ids: the last fifth is scored after the others; if not given, "
            "five times as many as are kept.",
        ),
    ] = None,
    n_sink: Annotated[int, cache_option(min=1, help="First tokens kept.")] = 4,
    window_size: WindowSize = 252,
    press: Annotated[
        list[str],
        cache_option(help="A press of kvpress; any number of times.", autocompletion=lambda: list(PRESSES)),
    ] = COMPARED,
    interval: Annotated[
        int, cache_option(min=1, help="Tokens between two evictions of kvpress; its own default is 512.")
    ] = 8,
    compute: ComputeOptions,
    output: OutputOptions,
) -> None:
    """Compare with NVIDIA kvpress at equal budgets: a context cut once, and token by token."""
    record_file = source.outputs(output.force).check(output.output, RECORD)
    from streamlm.summaries.press_findings import comparison_text

    methods = compared_methods(n_sink, press)
    cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
    inputs = open_inputs(source, max_eval_tokens or 5 * cfg.capacity + 1)
    _check_sizes(len(inputs.ids), cfg, methods)
    comparison = _measure(inputs, compute, methods, cfg, interval)
    output.write(record_file, comparison, comparison_text(comparison))


def _check_sizes(n_tokens: int, cfg: StreamConfig, methods: dict[str, str]) -> None:
    """Raise ValueError unless a text is long enough for the cache, and for what presses score with."""
    context = n_tokens - 1 - (n_tokens - 1) // 5
    if cfg.capacity >= context:
        raise ValueError(
            f"--n-sink {cfg.n_sink} and --window-size {cfg.window_size} keep {cfg.capacity} tokens, and the "
            f"context, four fifths of {n_tokens} tokens of text, has {context}; take a smaller --window-size "
            "or more text (--max-eval-tokens)"
        )
    for method in methods.values():
        if method not in OURS:
            check_context(parse_press(method), context)


def _measure(
    inputs: Inputs, compute: Compute, methods: dict[str, str], cfg: StreamConfig, interval: int
) -> "Record":
    """Measure every method in both protocols, and return the comparison."""
    from streamlm.measure.progress import progress
    from streamlm.presses.decoding import DecodeConfig, measure_decoding
    from streamlm.presses.prefill import ContextConfig, measure_compression
    from streamlm.presses.setting import Setting
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import Run
    from streamlm.summaries.presses import collect_comparison

    n_tokens, capacity, bootstrap = len(inputs.ids), cfg.capacity, BootstrapConfig()
    scored = (n_tokens - 1) // 5
    contexts = ContextConfig(contexts=1, context_tokens=n_tokens - 1 - scored, scored_tokens=scored)
    decode = DecodeConfig(capacity=capacity, tokens=min(scored, n_tokens - capacity), interval=interval)
    setting = Setting(
        model_dir=inputs.model_dir, title=inputs.title, texts={inputs.dataset: inputs.ids}, compute=compute,
        bootstrap=bootstrap,
    )  # fmt: skip
    runs = {}
    with progress(len(methods) + 1, "method") as bar:
        for label, method in methods.items():
            measured = measure_compression(
                setting, method=method, contexts=contexts, n_sink=cfg.n_sink, budgets=[capacity]
            )
            runs[label] = Run(*measured)
            bar.update()
        decoding = Run(*measure_decoding(setting, n_sink=cfg.n_sink, decode=decode))
        bar.update()
    _, comparison, _ = collect_comparison(runs, decoding, inputs.dataset, capacity, bootstrap)
    return comparison
