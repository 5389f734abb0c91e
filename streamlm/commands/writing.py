"""What `generate` and `chat` share: how tokens are drawn, and the model that writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamlm.commands.options import find_model
from streamlm.config import Compute

if TYPE_CHECKING:
    from streamlm.generate.sampling import Sampling
    from streamlm.measure.open_model import OpenedModel

DRAWING = "Drawing tokens"

Temperature = Annotated[
    float, typer.Option(min=0, help="0 takes the likeliest token.", rich_help_panel=DRAWING)
]
TopP = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Draw from the likeliest tokens of this much probability.", rich_help_panel=DRAWING
    ),
]
Seed = Annotated[int, typer.Option(help="Of the draws.", rich_help_panel=DRAWING)]


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn."""

    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    seed: Seed = 0

    @property
    def sampling(self) -> "Sampling":
        """What a writer takes."""
        from streamlm.generate.sampling import Sampling

        return Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)


@dataclass(frozen=True)
class ChatSamplingOptions(SamplingOptions):
    """The same, livelier."""

    temperature: Temperature = 0.2
    top_p: TopP = 0.9


def open_writer(model_name: Path, compute: Compute) -> tuple["OpenedModel", Any]:
    """Return the prepared model and its tokenizer."""
    from streamlm.measure.open_model import open_model
    from streamlm.sources.corpus import read_tokenizer

    model_dir, title = find_model(model_name)
    tokenizer = read_tokenizer(model_dir)
    return open_model(model_dir, compute, title=title), tokenizer
