"""`figures`: what records show; nothing is measured."""

from pathlib import Path
from typing import Annotated

import typer

from streamlm.commands.options import OUTPUT
from streamlm.figures.catalogue import FIGURES, find_figure


def figures(
    results_dir: Annotated[
        Path, typer.Option(help="Where the workflow wrote its records.", rich_help_panel=OUTPUT)
    ] = Path("results"),
    output_dir: Annotated[
        Path, typer.Option(help="Write the figures here, .png.", rich_help_panel=OUTPUT)
    ] = Path("figures"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw this one; any number of times.",
            autocompletion=lambda: list(FIGURES),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Draw the figures from the records of a results folder; nothing is measured."""
    unknown = [name for name in only or [] if name not in FIGURES]
    if unknown:
        raise typer.BadParameter(f"unknown figure {unknown[0]!r}; known are {', '.join(FIGURES)}")
    from streamlm.figures.style import save_figure

    drawn = 0
    for name in only or FIGURES:
        figure = find_figure(name)
        records = figure.records.read(results_dir)
        if records:
            target = output_dir / f"{name}.png"
            save_figure(target, figure.plot(records))
            typer.echo(str(target))
            drawn += 1
        else:
            missing = results_dir / figure.records.pattern
            typer.echo(f"{name} is left out: there is no {missing}", err=True)
    if not drawn:
        raise ValueError(f"no figure could be drawn from {results_dir}; give the --results-dir of a workflow")
