"""`ablate`: one size changes, everything else stays."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streamlm.commands.options import (
    CACHE,
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
    Output,
    TextFile,
    TokenFile,
    check_targets,
    open_stream,
    print_json,
)

if TYPE_CHECKING:
    from streamlm.records.types import Record

DEFAULTS = {"window_size": [128, 256, 512, 1024, 2048], "n_sink": [0, 1, 2, 4, 8, 16]}


def ablation_sizes(
    kind: str, window_size: list[int] | None, n_sink: list[int] | None, capacity: list[int] | None
) -> list[tuple[int, int]]:
    """Return (n_sink, window_size) of every point of an ablation; the one of sinks holds the capacity."""
    if kind == "window_size":
        if capacity or len(n_sink or [4]) != 1:
            raise typer.BadParameter(
                "--ablation-type window_size takes one --n-sink and no --capacity; name several --window-size"
            )
        (sinks,) = n_sink or [4]
        return [(sinks, size) for size in window_size or DEFAULTS[kind]]
    if window_size:
        raise typer.BadParameter(
            "--ablation-type n_sink takes no --window-size: windows are what --capacity leaves"
        )
    capacities, n_sinks = capacity or [1028], n_sink or DEFAULTS[kind]
    if min(capacities) <= max(n_sinks):
        raise typer.BadParameter(
            f"a capacity of {min(capacities)} leaves no window beside {max(n_sinks)} sinks; raise --capacity"
        )
    return [(sinks, held - sinks) for held in capacities for sinks in n_sinks]


def ablate(
    ablation_type: Annotated[
        Literal["window_size", "n_sink"],
        typer.Option(help="What changes; sinks change at equal memory.", rich_help_panel=CACHE),
    ],
    model_name: ModelName = PACKAGED,
    dataset_name: DatasetName = None,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    text: TextFile = None,
    tokens: TokenFile = None,
    max_samples: MaxSamples = None,
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
    dtype: Dtype = "float32",
    device: Device = "auto",
    output: Output = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Keep record and losses of every run here.", rich_help_panel=OUTPUT)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw it, .png or .pdf.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change window size or number of sinks: a table against dense, judged on common tokens."""
    sizes = ablation_sizes(ablation_type, window_size, n_sink, capacity)
    check_targets(output, figure)
    if figure is not None and figure.suffix not in (".png", ".pdf"):
        raise typer.BadParameter(f"a figure is written as .png or .pdf, got {figure}")
    from tabulate import tabulate

    from streamlm.experiment.plan import run_label
    from streamlm.measure.perplexity import measure_perplexity
    from streamlm.records.files import write_array, write_json
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import ablation_rows, collect_ablation

    model_dir, title, ids, dataset = open_stream(
        model_name, dataset_name, dataset_config, dataset_split, text, tokens, max_samples
    )
    ids, largest, bootstrap = ids[:max_eval_tokens], max(map(sum, sizes)), BootstrapConfig()
    if largest >= len(ids) - 1:
        raise ValueError(f"{len(ids)} tokens never fill a cache of {largest}; take more, or smaller caches")
    runs: dict[str, tuple[str, int, int]] = {"dense": ("dense", 0, len(ids))}
    runs |= {run_label(*size): ("streaming" if size[0] else "window", *size) for size in sizes}
    with ExitStack() as undo:
        folder = output_dir or Path(undo.enter_context(tempfile.TemporaryDirectory()))
        for label, (method, sinks, window) in runs.items():
            record, losses = measure_perplexity(
                model_dir=model_dir, title=title, ids=ids, dataset=dataset, method=method, n_sink=sinks,
                window_size=window, dtype=dtype, device=device, bootstrap=bootstrap,
            )  # fmt: skip
            write_array(folder / f"{label}.npy", losses)
            write_json(folder / f"{label}.json", record)
        dense, *others = (folder / f"{label}.json" for label in runs)
        ablation = collect_ablation(ablation_type, [dense], others, bootstrap)
    if output is not None:
        write_json(output, ablation)
    if figure is not None:
        _draw_ablation(figure, ablation)
    if as_json:
        print_json(ablation)
    else:
        headers, rows = ablation_rows(ablation)
        typer.echo(tabulate(rows, headers, "github", disable_numparse=True))


def _draw_ablation(target: Path, ablation: "Record") -> None:
    from streamlm.figures.main import plot_ablation_n_sink, plot_ablation_window_size
    from streamlm.figures.style import save_figure

    plots = {"window_size": plot_ablation_window_size, "n_sink": plot_ablation_n_sink}
    save_figure(target, plots[ablation["ablation"]](ablation))
