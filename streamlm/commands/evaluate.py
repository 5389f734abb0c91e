"""`evaluate`: the losses of one text under one method."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamlm.commands.options import (
    CACHE,
    COMPUTE,
    OUTPUT,
    TEXT,
    CacheOptions,
    ComputeOptions,
    OutputOptions,
    SourceOptions,
    check_targets,
    grouped,
)
from streamlm.config import METHODS, find_method

if TYPE_CHECKING:
    from streamlm.records.types import Record


def _known(method: str) -> str:
    """Refuse a method that is not there."""
    if method not in METHODS:
        raise typer.BadParameter(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    return method


@grouped
def evaluate(
    source: SourceOptions,
    cache: CacheOptions,
    compute: ComputeOptions,
    output: OutputOptions,
    max_eval_tokens: Annotated[
        int | None, typer.Option(min=2, help="Score so many ids.", rich_help_panel=TEXT)
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            callback=_known,
            autocompletion=lambda: list(METHODS),
            metavar=f"[{'|'.join(METHODS)}]",
            help="window keeps as many tokens as streaming, but no sinks; recompute computes these from "
            "scratch for every token, estimated at --positions.",
            rich_help_panel=CACHE,
        ),
    ] = "streaming",
    positions: Annotated[
        int, typer.Option(min=1, help="Tokens at which recompute is measured.", rich_help_panel=CACHE)
    ] = 32,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Keep the state of a long run here; the same command continues from it.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Dense record of the same tokens (with its .npy), to compare with.", rich_help_panel=OUTPUT
        ),
    ] = None,
    per_token: Annotated[
        Path | None, typer.Option(help="Write float32 losses in nats, .npy.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Score one stream by one method: perplexity, time, KV memory."""
    check_targets(per_token, checkpoint, output.output)
    from streamlm.measure.checkpoint import discard_checkpoint
    from streamlm.measure.perplexity import measure_perplexity
    from streamlm.records.files import write_array
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import Run, check_baseline, read_run, score_line, with_baseline

    stream, bootstrap = source.open(max_eval_tokens), BootstrapConfig()
    dense = None if baseline is None else read_run(baseline)
    if dense is not None:
        check_baseline(dense, stream.ids)
    record, losses = measure_perplexity(
        **stream._asdict(),
        compute=compute.compute,
        method=find_method(method),
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
    output.show(shown, lambda: score_line(shown))
    discard_checkpoint(checkpoint)
