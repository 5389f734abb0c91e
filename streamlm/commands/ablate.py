"""`ablate`: one size changes, everything else stays."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streamlm.commands.inputs import Inputs, open_inputs
from streamlm.commands.options import (
    ComputeOptions,
    OutputOptions,
    SampleOptions,
    cache_option,
    output_option,
    text_option,
)
from streamlm.commands.output_types import FIGURE, RECORD, RUN_LOSSES, RUN_RECORD
from streamlm.commands.outputs import Output
from streamlm.config import METHODS, Compute, Method, StreamConfig
from streamlm.extras import need

if TYPE_CHECKING:
    from streamlm.records.types import Record

DEFAULTS = {"window_size": [128, 256, 512, 1024, 2048], "n_sink": [0, 1, 2, 4, 8, 16]}


def ablation_sizes(
    kind: str, window_size: list[int] | None, n_sink: list[int] | None, capacity: list[int] | None
) -> list[StreamConfig]:
    """Return the geometry of every point of an ablation; sinks change at constant capacity."""
    if kind == "window_size":
        if capacity or len(n_sink or [4]) != 1:
            raise typer.BadParameter(
                "--ablation-type window_size takes one --n-sink and no --capacity; name several --window-size"
            )
        (sinks,) = n_sink or [4]
        return [StreamConfig(n_sink=sinks, window_size=size) for size in window_size or DEFAULTS[kind]]
    if window_size:
        raise typer.BadParameter(
            "--ablation-type n_sink takes no --window-size: windows are what --capacity leaves"
        )
    capacities, n_sinks = capacity or [1028], n_sink or DEFAULTS[kind]
    if min(capacities) <= max(n_sinks):
        raise typer.BadParameter(
            f"a capacity of {min(capacities)} leaves no window beside {max(n_sinks)} sinks; raise --capacity"
        )
    return [StreamConfig(n_sink=sinks, window_size=size - sinks) for size in capacities for sinks in n_sinks]


def ablate(
    *,
    ablation_type: Annotated[
        Literal["window_size", "n_sink"], cache_option(help="Change this size; sinks change at equal memory.")
    ],
    source: SampleOptions,
    max_eval_tokens: Annotated[int, text_option(min=2, help="Read at most this many token ids.")] = 4096,
    window_size: Annotated[
        list[int] | None,
        cache_option(
            min=1, help="A window to measure; any number of times; 128, 256, 512, 1024, 2048 if not given."
        ),
    ] = None,
    n_sink: Annotated[
        list[int] | None,
        cache_option(
            min=0,
            help="Sinks beside every window, 4 if not given; or sinks to measure, any number of times; "
            "0, 1, 2, 4, 8, 16 if not given.",
        ),
    ] = None,
    capacity: Annotated[
        list[int] | None,
        cache_option(
            min=1,
            help="Tokens kept while sinks change, sinks + window; any number of times; 1028 if not given.",
        ),
    ] = None,
    compute: ComputeOptions,
    output_dir: Annotated[
        Path | None, output_option(help="Keep record and losses of every run here.")
    ] = None,
    figure: Annotated[Path | None, output_option(help="Draw it, .png or .pdf.")] = None,
    output: OutputOptions,
) -> None:
    """Change window size or number of sinks: a table against dense, judged on common tokens."""
    sizes = ablation_sizes(ablation_type, window_size, n_sink, capacity)
    if figure is not None and figure.suffix not in (".png", ".pdf"):
        raise typer.BadParameter(f"a figure is written as .png or .pdf, got {figure}")
    if figure is not None:
        need("matplotlib", "pandas")
    outputs = source.outputs(output.force)
    record_file, figure_file = outputs.check(output.output, RECORD), outputs.check(figure, FIGURE)
    from streamlm.experiment.plan import run_label
    from streamlm.summaries.main import ablation_rows
    from streamlm.summaries.tables import as_markdown

    runs: dict[str, tuple[Method, StreamConfig]] = {"dense": (METHODS["dense"], sizes[0])}
    for cfg in sizes:
        runs[run_label(cfg)] = METHODS["streaming" if cfg.n_sink else "window"], cfg
    with ExitStack() as undo:
        folder = output_dir or Path(undo.enter_context(tempfile.TemporaryDirectory()))
        files = {
            label: (
                outputs.check(folder / f"{label}.json", RUN_RECORD),
                outputs.check(folder / f"{label}.npy", RUN_LOSSES),
            )
            for label in runs
        }
        inputs, largest = open_inputs(source, max_eval_tokens), max(cfg.capacity for cfg in sizes)
        if largest >= len(inputs.ids) - 1:
            raise ValueError(
                f"{len(inputs.ids)} tokens never fill a cache of {largest}; take more, or smaller caches"
            )
        ablation = _measure(ablation_type, runs, inputs, compute, files)
    output.write(record_file, ablation, as_markdown(ablation_rows([ablation])))
    if figure_file is not None:
        _draw(figure_file, ablation)


def _measure(
    kind: str,
    runs: dict[str, tuple[Method, StreamConfig]],
    inputs: Inputs,
    compute: Compute,
    files: dict[str, tuple[Output, Output]],
) -> "Record":
    """Score dense and every geometry, write their records and losses, and return the ablation."""
    from streamlm.measure.perplexity import measure_perplexity
    from streamlm.records.files import write_array, write_json
    from streamlm.stats import BootstrapConfig
    from streamlm.summaries.main import collect_ablation

    bootstrap = BootstrapConfig()
    for label, (method, cfg) in runs.items():
        record, losses = measure_perplexity(
            **inputs._asdict(), compute=compute, method=method, cfg=cfg, bootstrap=bootstrap
        )
        record_file, losses_file = files[label]
        write_array(losses_file.path, losses)
        write_json(record_file.path, record)
    dense, *others = (record_file.asked for record_file, _ in files.values())
    return collect_ablation(kind, [dense], others, bootstrap)


def _draw(target: Output, ablation: "Record") -> None:
    from streamlm.figures.catalogue import find_figure
    from streamlm.figures.style import save_figure

    drawn = find_figure(f"ablation_{ablation['ablation']}").plot([ablation])
    with target.whole() as path:
        save_figure(path, drawn, target.asked.suffix)
