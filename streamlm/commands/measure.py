"""`evaluate` and `latency`: numbers about one text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from streamlm.commands.options import (
    CACHE,
    COMPUTE,
    OUTPUT,
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
    NSink,
    Output,
    Storage,
    TextFile,
    TokenFile,
    WindowSize,
    check_targets,
    open_stream,
    print_json,
)
from streamlm.config import METHODS

Method = Literal["dense", "window", "recompute", "streaming"]
ALL_METHODS, CAPACITIES, N_SINKS = list(METHODS), [1024], [4]  # what `latency` measures if not told


def evaluate(
    model_name: ModelName = PACKAGED,
    dataset_name: DatasetName = None,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    text: TextFile = None,
    tokens: TokenFile = None,
    max_samples: MaxSamples = None,
    max_eval_tokens: Annotated[
        int | None, typer.Option(min=2, help="Score so many ids.", rich_help_panel=TEXT)
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="window holds as many tokens as streaming, but no sinks; recompute encodes these anew for "
            "every token, estimated at --positions.",
            rich_help_panel=CACHE,
        ),
    ] = "streaming",
    n_sink: NSink = 4,
    window_size: WindowSize = 1020,
    storage: Storage = None,
    positions: Annotated[
        int, typer.Option(min=1, help="Tokens at which recompute is measured.", rich_help_panel=CACHE)
    ] = 32,
    dtype: Dtype = "float32",
    device: Device = "auto",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Keep the state of a long run here; the same command goes on from it.",
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
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Score one stream by one method: perplexity, time, KV memory."""
    check_targets(per_token, checkpoint, output)
    from streamlm.measure.checkpoint import discard_checkpoint
    from streamlm.measure.perplexity import measure_perplexity
    from streamlm.records.files import read_losses, read_record, write_array, write_json
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import Run, check_baseline, score_line, with_baseline

    model_dir, title, ids, dataset = open_stream(
        model_name, dataset_name, dataset_config, dataset_split, text, tokens, max_samples
    )
    ids = ids[:max_eval_tokens]
    bootstrap, dense = BootstrapConfig(), None
    if baseline is not None:
        dense = Run(read_record(baseline), read_losses(baseline))
        check_baseline(dense, ids)
    record, losses = measure_perplexity(
        model_dir=model_dir,
        ids=ids,
        dataset=dataset,
        title=title,
        method=method,
        n_sink=n_sink,
        window_size=window_size,
        positions=positions,
        dtype=dtype,
        device=device,
        storage=storage,
        bootstrap=bootstrap,
        checkpoint=checkpoint,
    )
    if dense is not None:
        record = with_baseline(Run(record, losses), dense, record["capacity"], bootstrap)
    if per_token is not None:
        write_array(per_token, losses)
    if output is not None:
        write_json(output, record)
    discard_checkpoint(checkpoint)
    if as_json:
        print_json(record)
    else:
        typer.echo(score_line(record))


def latency(
    model_name: ModelName = PACKAGED,
    dataset_name: DatasetName = None,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    text: TextFile = None,
    tokens: TokenFile = None,
    method: Annotated[
        list[str],
        typer.Option(
            help="Any of the four, any number of times.",
            autocompletion=lambda: ALL_METHODS,
            rich_help_panel=CACHE,
        ),
    ] = ALL_METHODS,
    capacity: Annotated[
        list[int], typer.Option(min=1, help="Tokens held; any number of times.", rich_help_panel=CACHE)
    ] = CAPACITIES,
    n_sink: Annotated[
        list[int], typer.Option(min=1, help="Of streaming; any number of times.", rich_help_panel=CACHE)
    ] = N_SINKS,
    warmup_tokens: Annotated[int, typer.Option(min=1, help="Not timed.", rich_help_panel=COMPUTE)] = 4,
    timed_tokens: Annotated[int, typer.Option(min=1, help="In each run.", rich_help_panel=COMPUTE)] = 8,
    recompute_tokens: Annotated[
        int, typer.Option(min=1, help="In each run of recompute.", rich_help_panel=COMPUTE)
    ] = 1,
    runs: Annotated[
        int, typer.Option(min=2, help="In which the methods take turns.", rich_help_panel=COMPUTE)
    ] = 5,
    dtype: Dtype = "float32",
    device: Device = "auto",
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Record of an earlier run on this machine, to compare with.", rich_help_panel=OUTPUT
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write a record of each, .json.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time decoding at a full cache: milliseconds per token, memory."""
    if not set(method) <= set(METHODS):
        raise typer.BadParameter(f"unknown --method in {method}; known are {', '.join(METHODS)}")
    from tabulate import tabulate

    from streamlm.experiment.plan import latency_label
    from streamlm.measure.latency import LatencyConfig, measure_latency
    from streamlm.records.files import read_record, write_json
    from streamlm.summaries.latency import (
        LATENCY_HEADERS,
        comparison_line,
        latency_ratio,
        latency_rows,
        same_setting,
    )

    model_dir, title, ids, dataset = open_stream(
        model_name, dataset_name, dataset_config, dataset_split, text, tokens
    )
    earlier = None if baseline is None else read_record(baseline)
    amounts = LatencyConfig(
        warmup_tokens=warmup_tokens, timed_tokens=timed_tokens, recompute_tokens=recompute_tokens, runs=runs
    )
    sides = [(name, n) for name in method for n in (n_sink if name == "streaming" else [0])]
    records = [
        record
        for held in capacity
        for record in measure_latency(
            model_dir=model_dir,
            ids=ids,
            dataset=dataset,
            title=title,
            capacity=held,
            sides=sides,
            latency=amounts,
            dtype=dtype,
            device=device,
        )
    ]
    if output_dir is not None:
        for record in records:
            label = latency_label(record["method"], record["capacity"], record["n_sink"])
            write_json(output_dir / f"decoding_latency_{label}.json", record)
    pair = None if earlier is None else (same_setting(records, earlier), earlier)
    if as_json:
        print_json({"records": records, "against_baseline": pair and latency_ratio(*pair)})
        return
    typer.echo(tabulate(latency_rows(records), LATENCY_HEADERS, "github", disable_numparse=True))
    if pair is not None:
        typer.echo(f"against {baseline}: {comparison_line(*pair)}")
