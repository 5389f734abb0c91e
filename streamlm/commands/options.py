"""Options that commands share, and what is done with them."""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

if TYPE_CHECKING:
    import numpy as np

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
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset-name", "--dataset",
        help="wikitext or pg19, as stored by the workflow in data/; or hub id, org/name[@revision].",
        autocompletion=lambda: list(ROLES), rich_help_panel=TEXT,
    ),
]  # fmt: skip
DatasetConfig = Annotated[
    str | None, typer.Option(help="Config of the data set on the hub.", rich_help_panel=TEXT)
]
DatasetSplit = Annotated[
    str | None,
    typer.Option(help="Split of the data set on the hub; test if not given.", rich_help_panel=TEXT),
]
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
Output = Annotated[Path | None, typer.Option(help="Write the record, .json.", rich_help_panel=OUTPUT)]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel=OUTPUT),
]


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


def open_stream(
    model_name: Path,
    dataset_name: str | None,
    dataset_config: str | None,
    dataset_split: str | None,
    text: Path | None,
    tokens: Path | None,
    max_samples: int | None = None,
) -> Stream:
    """Return the model and the token ids that these options ask for."""
    if [dataset_name, text, tokens].count(None) != 2:
        raise typer.BadParameter("give exactly one of --dataset-name, --text and --tokens")
    on_hub = "/" in str(dataset_name)
    if dataset_name is not None and dataset_name not in ROLES and not on_hub:
        known = ", ".join(ROLES)
        raise typer.BadParameter(
            f"unknown --dataset-name {dataset_name!r}; known are {known}, and hub ids, org/name"
        )
    for option, value in (("config", dataset_config), ("split", dataset_split)):
        if value is not None and not on_hub:
            raise typer.BadParameter(
                f"--dataset-{option} is of a data set on a hub; give its id, org/name, as --dataset-name"
            )
    if on_hub and Path(str(dataset_name)).exists():
        raise typer.BadParameter(f"{dataset_name} is a file here; give it as --text or --tokens")
    if tokens is not None and max_samples is not None:
        raise typer.BadParameter("--max-samples counts documents, and --tokens has none; leave one out")
    from streamlm.sources.corpus import extract_documents, read_sample, read_tokens, tokenise_documents

    model_dir, title = find_model(model_name)
    if tokens is not None:
        return Stream(model_dir, title, read_tokens(tokens), tokens.name)
    if text is not None:
        name, documents = text.name, extract_documents({"kind": "path", "format": "text"}, text)
    elif on_hub:
        from streamlm.sources.hub_texts import named_documents

        documents, name = named_documents(
            str(dataset_name), dataset_config, dataset_split or "test", max_samples
        )
    else:
        sample = read_sample(Path("data") / str(dataset_name) / "sample.json")
        name, documents = sample.dataset, sample.documents
    ids = tokenise_documents(documents, model_dir, add_bos=False, max_samples=max_samples)
    return Stream(model_dir, title, ids, name)


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
