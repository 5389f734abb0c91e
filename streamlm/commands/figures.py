"""`figures`: what records show; nothing is measured."""

from pathlib import Path
from typing import Annotated

import typer

from streamlm.commands.options import Force, output_option
from streamlm.commands.output_types import FIGURE
from streamlm.commands.outputs import Outputs
from streamlm.commands.terminal import say


def _names() -> list[str]:
    """Return the names of all figures."""
    from streamlm.figures.catalogue import FIGURES

    return list(FIGURES)


def figures(
    *,
    results_dir: Annotated[
        Path, output_option(help="Folder in which the workflow wrote its records.")
    ] = Path("results"),
    output_dir: Annotated[Path, output_option(help="Write the figures here, .png.")] = Path("figures"),
    only: Annotated[
        list[str] | None,
        output_option(help="Draw this one; any number of times.", autocompletion=_names),
    ] = None,
    force: Force = False,
) -> None:
    """Draw the figures again from the records of a results folder; nothing is measured."""
    from streamlm.figures.catalogue import FIGURES, find_figure

    for name in only or []:
        if name not in FIGURES:
            raise typer.BadParameter(f"unknown figure {name!r}; known are {', '.join(FIGURES)}")
    from streamlm.figures.style import save_figure

    read = {name: find_figure(name).records for name in FIGURES if not only or name in only}
    inputs = [file for each in read.values() for file in results_dir.glob(each.pattern.format(corpus="*"))]
    records = {name: each.read(results_dir) for name, each in read.items()}
    outputs = Outputs(inputs=inputs, force=force)
    files = {name: outputs.check(output_dir / f"{name}.png", FIGURE) for name in read if records[name]}
    for name, file in files.items():
        with file.whole() as path:
            save_figure(path, find_figure(name).plot(records[name]), ".png")
        say(file.asked)
    for name in read:
        if name not in files:
            missing = results_dir / read[name].pattern.format(corpus="*")
            say(f"{name} is left out: there is no {missing}", err=True)
    if not files:
        raise ValueError(f"no figure could be drawn from {results_dir}; give the --results-dir of a workflow")
