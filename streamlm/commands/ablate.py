"""`ablate`: one size changes, everything else stays."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from streamlm.commands.options import (
    CACHE,
    OUTPUT,
    TEXT,
    ComputeOptions,
    OutputOptions,
    SourceOptions,
    check_targets,
    grouped,
)
from streamlm.config import METHODS, StreamConfig

WINDOW_SIZES, N_SINKS = [128, 256, 512, 1024, 2048], [0, 1, 2, 4, 8, 16]


def ablation_points(
    ablated: str, window_size: list[int] | None, n_sink: list[int] | None, capacity: list[int] | None
) -> list[StreamConfig]:
    """Return every point of an ablation; the one of sinks keeps the capacity."""
    if ablated == "window_size":
        if capacity or len(n_sink or [4]) != 1:
            raise typer.BadParameter(
                "--ablation-type window_size takes one --n-sink and no --capacity; name several --window-size"
            )
        (sinks,) = n_sink or [4]
        return [StreamConfig(n_sink=sinks, window_size=size) for size in window_size or WINDOW_SIZES]
    if window_size:
        raise typer.BadParameter(
            "--ablation-type n_sink takes no --window-size: windows are what --capacity leaves"
        )
    capacities, n_sinks = capacity or [1028], n_sink or N_SINKS
    if min(capacities) <= max(n_sinks):
        raise typer.BadParameter(
            f"a capacity of {min(capacities)} leaves no window beside {max(n_sinks)} sinks; raise --capacity"
        )
    return [StreamConfig(n_sink=sinks, window_size=size - sinks) for size in capacities for sinks in n_sinks]


@grouped
def ablate(
    ablation_type: Annotated[
        Literal["window_size", "n_sink"],
        typer.Option(help="What changes; sinks change at equal memory.", rich_help_panel=CACHE),
    ],
    source: SourceOptions,
    compute: ComputeOptions,
    output: OutputOptions,
    max_eval_tokens: Annotated[
        int, typer.Option(min=2, help="Score so many ids.", rich_help_panel=TEXT)
    ] = 4096,
    window_size: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Any number of times; 128, 256, 512, 1024, 2048 if not given.",
            rich_help_panel=CACHE,
        ),
    ] = None,
    n_sink: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="For windows: one, 4 if not given. For sinks: any number of times; 0, 1, 2, 4, 8, 16.",
            rich_help_panel=CACHE,
        ),
    ] = None,
    capacity: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="For sinks: tokens held, sinks + window; any number of times; 1028 if not given.",
            rich_help_panel=CACHE,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Keep record and losses of every run here.", rich_help_panel=OUTPUT)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw it, .png or .pdf.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Change window size or number of sinks: a table against dense, judged on common tokens."""
    points = ablation_points(ablation_type, window_size, n_sink, capacity)
    check_targets(output.output, figure)
    if figure is not None and figure.suffix not in (".png", ".pdf"):
        raise typer.BadParameter(f"a figure is written as .png or .pdf, got {figure}")
    from streamlm.experiment.plan import run_label
    from streamlm.measure.perplexity import measure_perplexity
    from streamlm.records.files import write_array, write_json
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import ablation_rows, collect_ablation
    from streamlm.summaries.tables import as_markdown

    stream, bootstrap = source.open(max_eval_tokens), BootstrapConfig()
    largest = max(cfg.capacity for cfg in points)
    if largest >= len(stream.ids) - 1:
        raise ValueError(
            f"{len(stream.ids)} tokens never fill a cache of {largest}; take more, or smaller caches"
        )
    runs = {"dense": (METHODS["dense"], points[0])}
    runs |= {run_label(cfg): (METHODS["streaming" if cfg.n_sink else "window"], cfg) for cfg in points}
    with ExitStack() as undo:
        folder = output_dir or Path(undo.enter_context(tempfile.TemporaryDirectory()))
        for label, (method, cfg) in runs.items():
            record, losses = measure_perplexity(
                **stream._asdict(), compute=compute.compute, method=method, cfg=cfg, bootstrap=bootstrap
            )
            write_array(folder / f"{label}.npy", losses)
            write_json(folder / f"{label}.json", record)
        dense, *others = (folder / f"{label}.json" for label in runs)
        ablation = collect_ablation(ablation_type, [dense], others, bootstrap)
    if figure is not None:
        from streamlm.figures.catalogue import find_figure
        from streamlm.figures.style import save_figure

        save_figure(figure, find_figure(f"ablation_{ablation_type}").plot([ablation]))
    output.show(ablation, lambda: as_markdown(ablation_rows([ablation])))
