"""Groups of options that commands share, and what is done with them."""

import inspect
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import typer

from streamlm.config import Compute, StreamConfig

if TYPE_CHECKING:
    import numpy as np

    from streamlm.cache.sink_cache import SinkCache

ROLES = ("wikitext", "pg19")  # as the workflow stores them in data/
PACKAGED = Path("data/models/smollm2-135m-instruct")  # as the workflow makes it

TEXT, CACHE, COMPUTE, OUTPUT = "Model and text", "Cache", "Computing", "Output"

ModelName = Annotated[
    Path,
    typer.Option(
        help="Folder of a transformers model (safetensors), or hub id, org/name[@revision].",
        rich_help_panel=TEXT,
    ),
]
NSink = Annotated[
    int, typer.Option(min=0, help="First tokens kept (attention sinks).", rich_help_panel=CACHE)
]
WindowSize = Annotated[
    int,
    typer.Option(min=1, help="Recent tokens kept, the current one included.", rich_help_panel=CACHE),
]
KvDtype = Annotated[
    Literal["bfloat16", "float16", "int8"] | None,
    typer.Option(
        "--kv-dtype", "--storage",
        help="Quantise the window to this type; sinks stay as they are.", rich_help_panel=CACHE,
    ),
]  # fmt: skip
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=COMPUTE)]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel=OUTPUT),
]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose dataclass parameters are groups: every field is an option of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        types = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(field.name, parameter.kind, default=field.default, annotation=types[field.name])
            for field in fields(groups[name])
        ]

    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def find_model(model_name: Path) -> tuple[Path, str | None]:
    """Return a model's folder and, if it was fetched from a hub, its true name.

    Raises:
        ValueError: if there is none; where the workflow's own is missing, it says how to make it.
    """
    if model_name.exists():
        return model_name, None
    if model_name.parent == PACKAGED.parent:
        raise ValueError(
            f"there is no {model_name}; make it with `snakemake {model_name}`, run beside the Snakefile"
        )
    from streamlm.sources import hub

    return hub.named_model(model_name)


class Stream(NamedTuple):
    """A model and a text, as they were asked for."""

    model_dir: Path
    title: str | None  # the model's true name, if it came from a hub
    ids: "np.ndarray"  # (N,) token ids
    dataset: str  # the text's true name


@dataclass(frozen=True)
class SourceOptions:
    """The model and the text."""

    model_name: ModelName = PACKAGED
    dataset_name: Annotated[
        str | None,
        typer.Option(
            "--dataset-name", "--dataset",
            help="wikitext or pg19, as stored by the workflow in data/; or hub id, org/name[@revision].",
            autocompletion=lambda: list(ROLES), rich_help_panel=TEXT,
        ),
    ] = None  # fmt: skip
    dataset_config: Annotated[
        str | None, typer.Option(help="Config of the data set on the hub.", rich_help_panel=TEXT)
    ] = None
    dataset_split: Annotated[
        str | None,
        typer.Option(help="Split of the data set on the hub; test if not given.", rich_help_panel=TEXT),
    ] = None
    text: Annotated[
        Path | None,
        typer.Option("--text", help="A UTF-8 text file, taken as one stream.", rich_help_panel=TEXT),
    ] = None
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", help="A .npy of int64 ids, taken as given.", rich_help_panel=TEXT),
    ] = None
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Take so many documents.", rich_help_panel=TEXT)
    ] = None

    def open(self, max_tokens: int | None = None) -> Stream:
        """Return the model and the first token ids that these options ask for.

        Raises:
            typer.BadParameter: if the options contradict each other.
            ValueError: if a file is missing or damaged.
        """
        self._check()
        from streamlm.sources.corpus import extract_documents, read_sample, read_tokens, tokenise_documents

        model_dir, title = find_model(self.model_name)
        if self.tokens is not None:
            return Stream(model_dir, title, read_tokens(self.tokens)[:max_tokens], self.tokens.name)
        if self.text is not None:
            source = {"kind": "path", "format": "text"}
            name, documents = self.text.name, extract_documents(source, self.text)
        elif self._on_hub:
            from streamlm.sources.hub_texts import named_documents

            documents, name = named_documents(
                str(self.dataset_name), self.dataset_config, self.dataset_split or "test", self.max_samples
            )
        else:
            sample = read_sample(Path("data") / str(self.dataset_name) / "sample.json")
            name, documents = sample.dataset, sample.documents
        ids = tokenise_documents(documents, model_dir, add_bos=False, max_samples=self.max_samples)
        return Stream(model_dir, title, ids[:max_tokens], name)

    @property
    def _on_hub(self) -> bool:
        return "/" in str(self.dataset_name)

    def _check(self) -> None:
        name = self.dataset_name
        if [name, self.text, self.tokens].count(None) != 2:
            raise typer.BadParameter("give exactly one of --dataset-name, --text and --tokens")
        if name is not None and name not in ROLES and not self._on_hub:
            raise typer.BadParameter(
                f"unknown --dataset-name {name!r}; known are {', '.join(ROLES)}, and hub ids, org/name"
            )
        for option, value in (("config", self.dataset_config), ("split", self.dataset_split)):
            if value is not None and not self._on_hub:
                raise typer.BadParameter(
                    f"--dataset-{option} is of a data set on a hub; give its id, org/name, as --dataset-name"
                )
        if self._on_hub and Path(str(name)).exists():
            raise typer.BadParameter(f"{name} is a file here; give it as --text or --tokens")
        if self.tokens is not None and self.max_samples is not None:
            raise typer.BadParameter("--max-samples counts documents, and --tokens has none; leave one out")


@dataclass(frozen=True)
class ComputeOptions:
    """Number type and device."""

    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float64"],
        typer.Option(help="Of weights and arithmetic.", rich_help_panel=COMPUTE),
    ] = "float32"
    device: Device = "auto"

    @property
    def compute(self) -> Compute:
        """What a measurement takes."""
        return Compute(dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class CacheOptions:
    """The geometry of the cache, and how its window is stored."""

    n_sink: NSink = 4
    window_size: WindowSize = 1020
    kv_dtype: KvDtype = None

    @property
    def cfg(self) -> StreamConfig:
        """The geometry."""
        return StreamConfig(n_sink=self.n_sink, window_size=self.window_size)

    def open(self, model: Any) -> "SinkCache":
        """Return an empty cache for `model`."""
        from streamlm.cache.sink_cache import SinkCache

        return SinkCache(model.config, self.n_sink, self.window_size, kv_dtype=self.kv_dtype)


@dataclass(frozen=True)
class OutputOptions:
    """Where the record goes."""

    output: Annotated[Path | None, typer.Option(help="Write the record, .json.", rich_help_panel=OUTPUT)] = (
        None
    )
    as_json: AsJson = False

    def show(self, record: Any, in_words: Callable[[], str]) -> None:
        """Write and print a record: as JSON, or in words."""
        if self.output is not None:
            from streamlm.records.files import write_json

            write_json(self.output, record)
        if self.as_json:
            print_json(record)
        else:
            typer.echo(in_words())


def check_targets(*targets: Path | None) -> None:
    """Refuse, before hours of work, what could not be written after them."""
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
