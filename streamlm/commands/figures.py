"""`figures`: what records show; nothing is measured."""

from pathlib import Path
from typing import Annotated

import typer

from streamlm.commands.options import output_option


def _names() -> list[str]:
    """Return the names of all figures."""
    from streamlm.figures.catalogue import FIGURES

    return list(FIGURES)


def figures(
    *,
    results_dir: Annotated[Path, output_option(help="Where the workflow wrote its records.")] = Path(
        "results"
    ),
    output_dir: Annotated[Path, output_option(help="Write the figures here, .png.")] = Path("figures"),
    only: Annotated[
        list[str] | None,
        output_option(help="Draw this one; any number of times.", autocompletion=_names),
    ] = None,
) -> None:
    """Draw the figures again from the records of a results folder; nothing is measured."""
    from streamlm.figures.catalogue import FIGURES, find_figure

    for name in only or []:
        if name not in FIGURES:
            raise typer.BadParameter(f"unknown figure {name!r}; known are {', '.join(FIGURES)}")
    from streamlm.figures.style import save_figure

    drawn = 0
    for name in FIGURES:
        if only and name not in only:
            continue
        figure = find_figure(name)
        records = figure.records.read(results_dir)
        if records:
            target = output_dir / f"{name}.png"
            save_figure(target, figure.plot(records))
            typer.echo(str(target))
            drawn += 1
        else:
            missing = results_dir / figure.records.pattern.format(corpus="*")
            typer.echo(f"{name} is left out: there is no {missing}", err=True)
    if not drawn:
        raise ValueError(f"no figure could be drawn from {results_dir}; give the --results-dir of a workflow")
