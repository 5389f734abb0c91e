"""Options that several commands share, and the groups they come in."""

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streamlm.commands.outputs import Output, Outputs
from streamlm.commands.terminal import say
from streamlm.config import METHODS, ROLES, Compute, StreamConfig

PACKAGED = Path("data/models/smollm2-135m-instruct")  # as the workflow makes it

# An option of each panel of the help.
text_option = partial(typer.Option, rich_help_panel="Model and text")
drawing_option = partial(typer.Option, rich_help_panel="Drawing tokens")
cache_option = partial(typer.Option, rich_help_panel="Cache")
compute_option = partial(typer.Option, rich_help_panel="Computing")
output_option = partial(typer.Option, rich_help_panel="Output")

if TYPE_CHECKING:  # a type checker cannot list the names
    MethodName = str
else:
    MethodName = StrEnum("MethodName", {name: name for name in METHODS})

ModelName = Annotated[
    Path,
    text_option(
        help="Folder of a transformers model (safetensors), or hub id, org/name\\[@revision].",
        show_default="the workflow's own, in data/models",
    ),
]
NSink = Annotated[int, cache_option(min=0, help="First tokens kept (attention sinks).")]
WindowSize = Annotated[int, cache_option(min=1, help="Recent tokens kept, the current one included.")]
KvDtype = Annotated[
    Literal["bfloat16", "float16", "int8"] | None,
    cache_option(
        "--kv-dtype",
        "--storage",
        metavar="DTYPE",
        help="Quantise the window's keys and values to bfloat16, float16 or int8; sinks stay as they are.",
    ),
]
Device = Annotated[
    str, compute_option(help="Compute on cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one.")
]
Compile = Annotated[
    bool,
    compute_option(
        "--compile",
        help="Compile the decoding step: half a minute the first time on a machine; needs g++.",
    ),
]
AsJson = Annotated[bool, output_option("--json", help="Print one JSON document and nothing else.")]
Force = Annotated[
    bool, output_option("--force", help="Replace files that hold something else, without asking.")
]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """A model and a text."""

    model_name: ModelName = PACKAGED
    dataset_name: Annotated[
        str | None,
        text_option(
            "--dataset-name",
            "--dataset",
            help="wikitext or pg19, as stored by the workflow in data/; or hub id, org/name\\[@revision]; "
            "wikitext if no text is named.",
            autocompletion=lambda: list(ROLES),
        ),
    ] = None
    dataset_config: Annotated[
        str | None,
        text_option(help="Config of the data set on the hub, such as wikitext-103-v1 of wikitext."),
    ] = None
    dataset_split: Annotated[
        str | None,
        text_option(help="Split of the data set on the hub; test if not given."),
    ] = None
    text: Annotated[Path | None, text_option(help="A UTF-8 text file, taken as one stream.")] = None
    tokens: Annotated[Path | None, text_option(help="A .npy of int64 ids, taken as given.")] = None
    add_bos: Annotated[
        bool, text_option("--add-bos", help="Begin the text with the tokenizer's BOS token.")
    ] = False
    trust_remote_code: Annotated[
        bool, text_option("--trust-remote-code", help="Accepted and ignored: code of a hub is never run.")
    ] = False
    max_samples: int | None = None

    @property
    def sample(self) -> Path:
        """Where the workflow stores the data set."""
        return Path("data") / str(self.data_set) / "sample.json"

    def outputs(self, force: bool, *inputs: Path | None) -> Outputs:
        """Return how outputs are checked beside what these options read, and other inputs."""
        read = [self.text, self.tokens, self.sample, *inputs]
        return Outputs(inputs=read, model_dir=self.model_name, force=force)

    @property
    def data_set(self) -> str | None:
        """The data set that is read; None where a file is named instead."""
        is_named = self.text is not None or self.tokens is not None
        return self.dataset_name if is_named or self.dataset_name is not None else "wikitext"


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SourceOptions):
    """A model and a text, or the first documents of it."""

    max_samples: Annotated[int | None, text_option(min=1, help="Take at most this many documents.")] = None


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """A cache of sinks and a window."""

    n_sink: NSink = 4
    window_size: WindowSize = 1020
    kv_dtype: KvDtype = None

    @property
    def cfg(self) -> StreamConfig:
        """The geometry."""
        return StreamConfig(n_sink=self.n_sink, window_size=self.window_size)


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(Compute):
    """What is computed with."""

    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float64"],
        compute_option(
            metavar="DTYPE",
            help="Number type of weights and arithmetic: float32, bfloat16, float16, float64.",
        ),
    ] = "float32"
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where a record goes."""

    output: Annotated[Path | None, output_option(help="Write the record, .json.")] = None
    force: Force = False
    as_json: AsJson = False

    def write(self, output: Output | None, record: Any, text: str) -> None:
        """Write the record to the checked output; print it as JSON, or its text."""
        from streamlm.records.files import write_json

        if output is not None:
            with output.whole() as path:
                write_json(path, record)
        if self.as_json:
            print_json(record)
        else:
            say(text)


def print_json(content: Any) -> None:
    """Print one JSON document, as the records are written."""
    say(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
