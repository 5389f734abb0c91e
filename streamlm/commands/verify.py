"""`verify`: whether results that were made elsewhere hold here."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from streamlm.commands.options import (
    COMPUTE,
    PACKAGED,
    TEXT,
    AsJson,
    Device,
    ModelName,
    find_model,
    print_json,
)


def verify(
    results_dir: Annotated[Path, typer.Argument(help="The results_dir of an experiment.")],
    model_name: ModelName = PACKAGED,
    tokens_dir: Annotated[
        Path,
        typer.Option(
            help="Holds the token ids of its texts, .npy; they are found by their hash.", rich_help_panel=TEXT
        ),
    ] = Path("data/tokens"),
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rescore so many tokens of each record; more than all is all.",
            rich_help_panel=COMPUTE,
        ),
    ] = 2560,
    seed: Annotated[
        int, typer.Option(min=0, help="Of what is sampled beyond these.", rich_help_panel=COMPUTE)
    ] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Check results that were made elsewhere: rescore a sample, follow every number to its losses."""
    from streamlm.experiment.rescore import passed, verify_results

    model_dir, _ = find_model(model_name)
    found = []
    for verdict in verify_results(
        results_dir,
        model_dir=model_dir,
        tokens_dir=tokens_dir,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
    ):
        if not as_json:
            typer.echo(verdict)
        found.append(verdict)
    if as_json:
        print_json([asdict(verdict) for verdict in found])
    if not passed(found):
        raise ValueError(f"{results_dir} is not confirmed: see above what was refuted or never rescored")
