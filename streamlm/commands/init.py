"""`init`: a folder of one's own, in which the workflow runs."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from streamlm.commands.outputs import expanded
from streamlm.commands.terminal import say
from streamlm.extras import EXTRAS, need


def init(
    *,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
) -> None:
    """Put the Snakefile, config and profiles of the workflow into an empty folder."""
    from streamlm.experiment.folder import make_folder

    need(*(library for library, extra in EXTRAS.items() if extra == "workflow"))
    folder = expanded(folder)
    for file in make_folder(folder):
        say(str(file))
    say(f"Next:\ncd {quote(str(folder))}\nsnakemake -n\nsnakemake --cores 1 all", err=True)
