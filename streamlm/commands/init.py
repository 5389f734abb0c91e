"""`init`: a folder of one's own, in which the workflow runs."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    *,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
) -> None:
    """Put the Snakefile, config and profiles of the workflow into an empty folder."""
    from streamlm.experiment.folder import make_folder

    for file in make_folder(folder):
        typer.echo(str(file))
    typer.echo(f"Now: cd {folder}; snakemake -n shows the jobs, snakemake --cores 1 all runs them.", err=True)
