"""Options that several commands share, and the groups they come in."""

import json
import sys
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

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
    text_option(help="Folder of a transformers model (safetensors), or hub id, org/name\\[@revision]."),
]
NSink = Annotated[int, cache_option(min=0, help="First tokens kept (attention sinks).")]
WindowSize = Annotated[int, cache_option(min=1, help="Recent tokens kept, the current one included.")]
KvDtype = Annotated[
    Literal["bfloat16", "float16", "int8"] | None,
    cache_option(
        "--kv-dtype", "--storage", help="Quantise the window's keys and values; sinks stay as they are."
    ),
]
Device = Annotated[str, compute_option(help="auto, cpu, cuda, cuda:1, mps.")]
Compile = Annotated[
    bool,
    compute_option(
        "--compile",
        help="Compile the decoding step: half a minute the first time on a machine; needs g++.",
    ),
]
AsJson = Annotated[bool, output_option("--json", help="Print one JSON document and nothing else.")]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """A model and a text."""

    model_name: ModelName = PACKAGED
    dataset_name: Annotated[
        str | None,
        text_option(
            "--dataset-name",
            "--dataset",
            help="wikitext or pg19, as stored by the workflow in data/; or hub id, org/name\\[@revision].",
            autocompletion=lambda: list(ROLES),
        ),
    ] = None
    dataset_config: Annotated[str | None, text_option(help="Config of the data set on the hub.")] = None
    dataset_split: Annotated[
        str | None,
        text_option(help="Split of the data set on the hub; test if not given."),
    ] = None
    text: Annotated[Path | None, text_option(help="A UTF-8 text file, taken as one stream.")] = None
    tokens: Annotated[Path | None, text_option(help="A .npy of int64 ids, taken as given.")] = None
    add_bos: Annotated[
        bool, text_option("--add-bos", help="Begin the text with the tokenizer's BOS token.")
    ] = False
    max_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SourceOptions):
    """A model and a text, or the first documents of it."""

    max_samples: Annotated[int | None, text_option(min=1, help="Take so many documents.")] = None


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
        compute_option(help="Of weights and arithmetic."),
    ] = "float32"
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where a record goes."""

    output: Annotated[Path | None, output_option(help="Write the record, .json.")] = None
    as_json: AsJson = False

    def write(self, record: Any, text: str) -> None:
        """Write the record where it was asked for; print it as JSON, or its text."""
        from streamlm.records.files import write_json

        if self.output is not None:
            write_json(self.output, record)
        if self.as_json:
            print_json(record)
        else:
            typer.echo(text)


def check_targets(*targets: Path | None) -> None:
    """Refuse, before hours of work, files that could not be written after them."""
    given = [target for target in targets if target is not None]
    if len({target.resolve() for target in given}) < len(given):
        raise typer.BadParameter(f"two options name the file {given[0]} to write; give each its own")
    for target in given:
        if target.is_dir():
            raise typer.BadParameter(f"{target} is a folder; name a file to write")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):  # shows whether the folder can be written
            pass


def print_json(content: Any) -> None:
    """Print one JSON document, as the records are written."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
