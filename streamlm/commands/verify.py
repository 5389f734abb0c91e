"""`verify`: whether results that were made elsewhere can be confirmed here."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from streamlm.commands.inputs import find_model
from streamlm.commands.options import (
    PACKAGED,
    AsJson,
    Device,
    ModelName,
    compute_option,
    print_json,
    text_option,
)


def verify(
    *,
    results_dir: Annotated[Path, typer.Argument(help="The results_dir of an experiment.")],
    model_name: ModelName = PACKAGED,
    tokens_dir: Annotated[
        Path, text_option(help="Folder of the texts' token ids, .npy; they are found by their hash.")
    ] = Path("data/tokens"),
    max_tokens: Annotated[
        int,
        compute_option(min=1, help="Score so many tokens of each record again; more than all is all."),
    ] = 2560,
    seed: Annotated[int, compute_option(min=0, help="Of what is sampled beyond these.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Check results that were made elsewhere: score a sample again, follow every number to its losses."""
    from streamlm.experiment.rescore import passed, verify_results

    model_dir, _ = find_model(model_name)
    verdicts = []
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
        verdicts.append(verdict)
    if as_json:
        print_json([asdict(verdict) for verdict in verdicts])
    if not passed(verdicts):
        raise ValueError(
            f"not all is well with {results_dir}: see above what was refuted or never scored again"
        )
