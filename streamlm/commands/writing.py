"""What `generate` and `chat` share: how tokens are drawn, the model that writes, and its cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamlm.commands.inputs import find_model
from streamlm.commands.options import drawing_option
from streamlm.config import Compute

if TYPE_CHECKING:
    from streamlm.generate.sampling import Sampling
    from streamlm.measure.open_model import OpenedModel

Temperature = Annotated[float, drawing_option(min=0, help="0 takes the likeliest token.")]
TopP = Annotated[
    float, drawing_option(min=0, max=1, help="Draw from the likeliest tokens of this much probability.")
]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn."""

    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    seed: Annotated[int, drawing_option(help="Of the draws.")] = 0

    def check(self) -> "Sampling":
        """Return how a writer draws; raise ValueError where typer lets a wrong number pass."""
        from streamlm.generate.sampling import Sampling

        return Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class ChatSamplingOptions(SamplingOptions):
    """The same, with other defaults."""

    temperature: Temperature = 0.2
    top_p: TopP = 0.9


def checked_text(text: str, option: str) -> str:
    """Return a text of the command line; raise ValueError if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python keeps bytes that it cannot decode as lone surrogates
        raise ValueError(
            f"{option} is not UTF-8; set the terminal to UTF-8, or put it into a file"
        ) from error
    return text


def open_writer(model_name: Path, compute: Compute, compile: bool) -> tuple["OpenedModel", Any]:
    """Return the prepared model and its tokenizer."""
    from streamlm.measure.open_model import open_model
    from streamlm.sources.corpus import read_tokenizer

    if compile:
        typer.echo("once the cache is full, a step is compiled: half a minute the first time", err=True)
    model_dir, title = find_model(model_name)
    tokenizer = read_tokenizer(model_dir)
    return open_model(model_dir, compute, title=title, compile=compile), tokenizer
