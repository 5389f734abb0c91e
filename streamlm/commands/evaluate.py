"""`evaluate`: one text scored by one method."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from streamlm.commands.inputs import open_inputs
from streamlm.commands.options import (
    CacheOptions,
    ComputeOptions,
    MethodName,
    OutputOptions,
    SampleOptions,
    cache_option,
    compute_option,
    output_option,
    text_option,
)
from streamlm.commands.output_types import CHECKPOINT, LOSSES, RECORD
from streamlm.config import METHODS

if TYPE_CHECKING:
    from streamlm.records.types import Record


def evaluate(
    *,
    source: SampleOptions,
    max_eval_tokens: Annotated[
        int | None, text_option(min=2, help="Read at most this many token ids; all but the first are scored.")
    ] = None,
    method: Annotated[
        MethodName,
        cache_option(
            metavar="METHOD",
            help="dense, window, recompute, streaming or text_positions. window keeps as many tokens as "
            "streaming, but no sinks; recompute computes them from scratch for every token, estimated at "
            "--positions; text_positions leaves sinks as far away as they are in the text.",
        ),
    ] = "streaming",
    cache: CacheOptions,
    positions: Annotated[int, cache_option(min=1, help="Tokens at which recompute is measured.")] = 32,
    compute: ComputeOptions,
    checkpoint: Annotated[
        Path | None,
        compute_option(help="Keep the state of a long run here; the same command continues from it."),
    ] = None,
    baseline: Annotated[
        Path | None,
        output_option(
            help="Dense record of the same tokens, to compare with; its losses lie beside it, as --per-token "
            "with the same name writes them."
        ),
    ] = None,
    per_token: Annotated[Path | None, output_option(help="Write float32 losses in nats, .npy.")] = None,
    output: OutputOptions,
) -> None:
    """Score one stream by one method: perplexity, time, KV memory."""
    outputs = source.outputs(output.force, baseline, baseline and baseline.with_suffix(".npy"))
    losses_file = outputs.check(per_token, LOSSES)
    state_file = outputs.check(checkpoint, CHECKPOINT)
    state = None if state_file is None else state_file.path
    record_file = outputs.check(output.output, RECORD)
    if baseline is not None:
        _check_losses(baseline)
    from streamlm.measure.perplexity import measure_perplexity
    from streamlm.records.files import discard_checkpoint, write_array
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import Run, check_baseline, read_run, score_line, with_baseline

    inputs, bootstrap = open_inputs(source, max_eval_tokens), BootstrapConfig()
    if method == "streaming" and cache.n_sink == 0 and cache.window_size >= len(inputs.ids):
        method = "dense"  # as people ask for it: --n-sink 0 --window-size 999999
    dense = None if baseline is None else read_run(baseline)
    if dense is not None:
        check_baseline(dense, inputs.ids)
    record, losses = measure_perplexity(
        **inputs._asdict(),
        compute=compute,
        method=METHODS[method],
        cfg=cache.cfg,
        positions=positions,
        kv_dtype=cache.kv_dtype,
        bootstrap=bootstrap,
        checkpoint=state,
    )
    shown: Record = record
    if dense is not None:
        shown = with_baseline(Run(record, losses), dense, record["capacity"], bootstrap)
    if losses_file is not None:
        with losses_file.whole() as path:
            write_array(path, losses)
    output.write(record_file, shown, score_line(shown))
    discard_checkpoint(state)


def _check_losses(baseline: Path) -> None:
    """Raise ValueError if a record has no losses beside it, saying how to write them."""
    losses = baseline.with_suffix(".npy")
    if baseline.is_file() and not losses.is_file():
        raise ValueError(
            f"{baseline} has no {losses.name} beside it, with the loss of every token; make both with "
            f"--method dense --output {baseline} --per-token {losses}"
        )
