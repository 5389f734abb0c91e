"""What `generate` and `chat` share: how tokens are drawn, the model that writes, and its cache."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from streamlm.commands.inputs import find_model
from streamlm.commands.options import drawing_option
from streamlm.commands.terminal import say
from streamlm.config import Compute

if TYPE_CHECKING:
    from streamlm.generate.sampling import Sampling
    from streamlm.measure.open_model import OpenedModel


NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}  # as the model says
GREEDY = NEUTRAL | {"temperature": 0.0}
# What suits small instruct models: SmolLM2's model card advises the first two; the penalty ends loops.
CHAT = NEUTRAL | {"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}

TOP_P = drawing_option(min=0, max=1, help="Draw from the likeliest tokens of this much probability.")
TOP_K = drawing_option(min=0, help="Draw from this many likeliest tokens; 0 draws from all.")
PENALTY = drawing_option(help="Above 1, tokens in the cache become less likely.")
Seed = Annotated[int, drawing_option(help="The same seed draws the same tokens.")]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn."""

    temperature: Annotated[float, drawing_option(min=0, help="0 takes the likeliest token.")] = 0.0
    top_p: Annotated[float, TOP_P] = 1.0
    top_k: Annotated[int, TOP_K] = 0
    repetition_penalty: Annotated[float, PENALTY] = 1.0
    seed: Seed = 0

    def check(self) -> "Sampling":
        """Return how a writer draws; raise ValueError where typer lets a wrong number pass."""
        from streamlm.generate.sampling import Sampling

        return Sampling(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class ChatSamplingOptions:
    """How the tokens of an answer are drawn; what is not given is the model's own setting, or ours."""

    temperature: Annotated[
        float | None,
        drawing_option(min=0, help="0 takes the likeliest token; if not given, the model's own, or 0.2."),
    ] = None
    top_p: Annotated[float | None, TOP_P] = None
    top_k: Annotated[int | None, TOP_K] = None
    repetition_penalty: Annotated[float | None, PENALTY] = None
    seed: Seed = 0

    def check(self, generation_config: Any = None) -> "Sampling":
        """Return how answers are drawn: as given; else as the model's own settings say; else as `CHAT` says.

        A temperature of 0 that is given takes the likeliest token, whatever the other settings are.

        Args:
            generation_config: of the model; without `do_sample`, it says nothing of sampling.
        """
        from streamlm.generate.sampling import Sampling

        given = {name: value for name, value in asdict(self).items() if value is not None}
        defaults = CHAT
        if self.temperature == 0:
            defaults = GREEDY
        elif getattr(generation_config, "do_sample", None):
            settings = {name: getattr(generation_config, name, None) for name in NEUTRAL}
            defaults = NEUTRAL | {name: value for name, value in settings.items() if value is not None}
            try:
                Sampling(**{**defaults, "seed": 0})  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise ValueError(f"the model's own generation settings: {error}") from error
        return Sampling(**{**defaults, **given})


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
    from streamlm.sources.tokens import read_tokenizer

    if compile:
        say("once the cache is full, a step is compiled: half a minute the first time", err=True)
    model_dir, title = find_model(model_name)
    tokenizer = read_tokenizer(model_dir)
    return open_model(model_dir, compute, title=title, compile=compile), tokenizer
