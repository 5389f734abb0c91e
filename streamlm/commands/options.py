"""Options that commands share, and what is done with them."""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import numpy as np

ROLES = ("wikitext", "pg19")  # as the workflow stores them in data/
PACKAGED = Path("data/models/smollm2-135m-instruct")  # as the workflow makes it

TEXT, CACHE, COMPUTE, OUTPUT = "Model and text", "Cache", "Computing", "Output"

ModelName = Annotated[
    Path, typer.Option(help="Folder of a transformers model (safetensors).", rich_help_panel=TEXT)
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset-name", "--dataset", help="wikitext or pg19, as stored by the workflow in data/.",
        autocompletion=lambda: list(ROLES), rich_help_panel=TEXT,
    ),
]  # fmt: skip
TextFile = Annotated[
    Path | None,
    typer.Option("--text", help="A UTF-8 text file, taken as one stream.", rich_help_panel=TEXT),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--tokens", help="A .npy of int64 ids, taken as given.", rich_help_panel=TEXT),
]
MaxSamples = Annotated[int | None, typer.Option(min=1, help="Take so many documents.", rich_help_panel=TEXT)]
NSink = Annotated[
    int, typer.Option(min=0, help="First tokens kept (attention sinks).", rich_help_panel=CACHE)
]
WindowSize = Annotated[
    int,
    typer.Option(min=1, help="Recent tokens kept, the current one included.", rich_help_panel=CACHE),
]
Storage = Annotated[
    Literal["bfloat16", "float16", "int8"] | None,
    typer.Option(help="Hold the window in fewer bits; sinks stay as they are.", rich_help_panel=CACHE),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "float64"],
    typer.Option(help="Of weights and arithmetic.", rich_help_panel=COMPUTE),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=COMPUTE)]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel=OUTPUT),
]


def require_model(model_name: Path) -> Path:
    """Return the model's folder; where the workflow's own is missing, say how to make it."""
    if not model_name.exists() and model_name.parent == PACKAGED.parent:
        raise ValueError(
            f"there is no {model_name}; make it with `snakemake {model_name}`, run beside the Snakefile"
        )
    return model_name


def read_stream(
    model_name: Path,
    dataset_name: str | None,
    text: Path | None,
    tokens: Path | None,
    max_samples: int | None = None,
) -> "tuple[np.ndarray, str]":
    """Return the token ids that were asked for and the true name of their text."""
    if [dataset_name, text, tokens].count(None) != 2:
        raise typer.BadParameter("give exactly one of --dataset-name, --text and --tokens")
    if dataset_name is not None and dataset_name not in ROLES:
        raise typer.BadParameter(f"unknown --dataset-name {dataset_name!r}; known are {', '.join(ROLES)}")
    from streamlm.data import extract_documents, read_sample, read_tokens, tokenise_documents

    require_model(model_name)
    if tokens is not None:
        return read_tokens(tokens), tokens.name
    if text is not None:
        name, documents = text.name, extract_documents({"kind": "path", "format": "text"}, text)
    else:
        sample = read_sample(Path("data") / str(dataset_name) / "sample.json")
        name, documents = sample.dataset, sample.documents
    return tokenise_documents(documents, model_name, add_bos=False, max_samples=max_samples), name


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
