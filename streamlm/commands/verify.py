"""`verify`: whether results that were made elsewhere can be confirmed here."""

from dataclasses import asdict
from pathlib import Path
from secrets import randbelow
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
from streamlm.commands.terminal import say


def _compare(results_dir: Path, expected: Path, as_json: bool) -> None:
    """Print every number beside its range; raise ValueError if one is outside."""
    from streamlm.experiment.expected import compare_expected

    found = []
    for each in compare_expected(results_dir, expected):
        if not as_json:
            say(each)
        found.append(each)
    if as_json:
        print_json([asdict(each) | {"holds": each.holds} for each in found])
    outside = sum(not each.holds for each in found)
    if outside:
        raise ValueError(f"{outside} of {len(found)} numbers are not where they are expected")


def verify(
    *,
    results_dir: Annotated[Path, typer.Argument(help="The results_dir of an experiment.")],
    model_name: ModelName = PACKAGED,
    tokens_dir: Annotated[
        Path, text_option(help="Folder of the texts' token ids, .npy; they are found by their hash.")
    ] = Path("data/tokens"),
    max_tokens: Annotated[
        int,
        compute_option(
            min=1,
            help="Score about this many tokens of each record again, at its beginning, at its end and "
            "between; dense is always scored whole.",
        ),
    ] = 2560,
    seed: Annotated[
        int | None,
        compute_option(min=0, help="The same seed samples the same tokens; without, it is drawn."),
    ] = None,
    title: Annotated[
        str | None, text_option(help="True name of the model, as in the config, if its folder has none.")
    ] = None,
    kvpress: Annotated[
        bool,
        text_option("--kvpress/--no-kvpress", help="Look at the comparison with kvpress too."),
    ] = True,
    device: Device = "auto",
    expected: Annotated[
        Path | None,
        text_option(
            help="Compare with the ranges in this file, such as configs/pythia-70m.expected.json, and "
            "score nothing."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check results that were made elsewhere: score a sample again, follow every number to its losses."""
    if expected is not None:
        _compare(results_dir, expected, as_json)
        return
    from streamlm.experiment.verdicts import require_passed, verify_results

    model_dir, _ = find_model(model_name)
    # A forger who knew the seed would change only losses that it does not draw.
    seed = randbelow(2**31) if seed is None else seed
    verdicts = []
    for verdict in verify_results(
        results_dir,
        model_dir=model_dir,
        tokens_dir=tokens_dir,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        title=title,
        kvpress=kvpress,
    ):
        if not as_json:
            say(verdict)
        verdicts.append(verdict)
    if as_json:
        print_json([asdict(verdict) for verdict in verdicts])
    require_passed(results_dir, verdicts)
