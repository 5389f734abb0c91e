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
    check_targets,
    compute_option,
    output_option,
    text_option,
)
from streamlm.config import METHODS

if TYPE_CHECKING:
    from streamlm.records.types import Record


def evaluate(
    *,
    source: SampleOptions,
    max_eval_tokens: Annotated[int | None, text_option(min=2, help="Score so many ids.")] = None,
    method: Annotated[
        MethodName,
        cache_option(
            help="window keeps as many tokens as streaming, but no sinks; recompute computes them from "
            "scratch for every token, estimated at --positions."
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
        output_option(help="Dense record of the same tokens (with its .npy), to compare with."),
    ] = None,
    per_token: Annotated[Path | None, output_option(help="Write float32 losses in nats, .npy.")] = None,
    output: OutputOptions,
) -> None:
    """Score one stream by one method: perplexity, time, KV memory."""
    check_targets(per_token, checkpoint, output.output)
    from streamlm.measure.checkpoint import discard_checkpoint
    from streamlm.measure.perplexity import measure_perplexity
    from streamlm.records.files import write_array
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import Run, check_baseline, read_run, score_line, with_baseline

    inputs, bootstrap = open_inputs(source, max_eval_tokens), BootstrapConfig()
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
        checkpoint=checkpoint,
    )
    shown: Record = record
    if dense is not None:
        shown = with_baseline(Run(record, losses), dense, record["capacity"], bootstrap)
    if per_token is not None:
        write_array(per_token, losses)
    output.write(shown, score_line(shown))
    discard_checkpoint(checkpoint)
