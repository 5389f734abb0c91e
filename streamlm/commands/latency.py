"""`latency`: what a decoded token costs."""

from pathlib import Path
from typing import Annotated

import typer

from streamlm.commands.options import (
    CACHE,
    COMPUTE,
    OUTPUT,
    AsJson,
    ComputeOptions,
    SourceOptions,
    grouped,
    print_json,
)
from streamlm.config import METHODS, as_asked

TIMED, CAPACITIES, N_SINKS = [name for name in METHODS if METHODS[name].is_timed], [1024], [4]


@grouped
def latency(
    source: SourceOptions,
    compute: ComputeOptions,
    method: Annotated[
        list[str],
        typer.Option(
            help=f"{', '.join(TIMED)}; any number of times.",
            autocompletion=lambda: TIMED,
            rich_help_panel=CACHE,
        ),
    ] = TIMED,
    capacity: Annotated[
        list[int], typer.Option(min=1, help="Tokens kept; any number of times.", rich_help_panel=CACHE)
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
    if not set(method) <= METHODS.keys():
        raise typer.BadParameter(f"unknown --method in {method}; known are {', '.join(METHODS)}")
    from streamlm.experiment.plan import latency_label
    from streamlm.measure.latency import LatencyConfig, measure_latency
    from streamlm.records.files import read_record, write_json
    from streamlm.summaries.latency import comparison_line, latency_ratio, latency_rows, same_setting
    from streamlm.summaries.tables import as_markdown

    stream = source.open()
    earlier = None if baseline is None else read_record(baseline)
    amounts = LatencyConfig(
        warmup_tokens=warmup_tokens, timed_tokens=timed_tokens, recompute_tokens=recompute_tokens, runs=runs
    )
    cases = [(name, n) for name in method for n in (n_sink if METHODS[name].geometry is as_asked else [0])]
    records = [
        record
        for size in capacity
        for record in measure_latency(
            **stream._asdict(), compute=compute.compute, capacity=size, cases=cases, latency=amounts
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
    typer.echo(as_markdown(latency_rows(records)))
    if pair is not None:
        typer.echo(f"against {baseline}: {comparison_line(*pair)}")
