"""The model and the token ids that the options of a command ask for."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from streamlm.commands.options import PACKAGED, SourceOptions
from streamlm.config import ROLES

if TYPE_CHECKING:
    import numpy as np

    from streamlm.sources.documents import Document


class Inputs(NamedTuple):
    """A model and a text, as they were asked for."""

    model_dir: Path
    title: str | None  # the model's true name, if it came from a hub
    ids: "np.ndarray"  # (N,) token ids
    dataset: str  # the text's true name


def find_model(model_name: Path) -> tuple[Path, str | None]:
    """Return a model's folder and, if it was fetched from a hub, its true name.

    Raises:
        ValueError: if there is none; where the workflow's own is missing, it says how to make it.
    """
    if model_name.exists():
        return model_name, None
    if model_name.parent == PACKAGED.parent:
        raise ValueError(
            f"there is no {model_name}; make it with `snakemake {model_name}`, run beside the Snakefile "
            "(`streamlm init FOLDER` makes one)"
        )
    from streamlm.sources import hub

    return hub.named_model(model_name)


def open_inputs(source: SourceOptions, max_tokens: int | None = None) -> Inputs:
    """Return the model and the first token ids that these options ask for."""
    _check_source(source)
    from streamlm.sources.corpus import read_tokens, tokenise_documents

    model_dir, title = find_model(source.model_name)
    if source.tokens is not None:
        name, ids = source.tokens.name, read_tokens(source.tokens)
    else:
        name, documents = _read_documents(source)
        ids = tokenise_documents(documents, model_dir, add_bos=source.add_bos, max_samples=source.max_samples)
    return Inputs(model_dir, title, ids[:max_tokens], name)


def _is_on_hub(source: SourceOptions) -> bool:
    return "/" in str(source.dataset_name)


def _check_source(source: SourceOptions) -> None:
    """Refuse options that contradict each other."""
    name, on_hub = source.dataset_name, _is_on_hub(source)
    if [name, source.text, source.tokens].count(None) != 2:
        raise typer.BadParameter("give exactly one of --dataset-name, --text and --tokens")
    if name is not None and name not in ROLES and not on_hub:
        known = ", ".join(ROLES)
        raise typer.BadParameter(f"unknown --dataset-name {name!r}; known are {known}, and hub ids, org/name")
    for option, value in (("config", source.dataset_config), ("split", source.dataset_split)):
        if value is not None and not on_hub:
            raise typer.BadParameter(
                f"--dataset-{option} is of a data set on a hub; give its id, org/name, as --dataset-name"
            )
    if on_hub and Path(str(name)).exists():
        raise typer.BadParameter(f"{name} is a file here; give it as --text or --tokens")
    if source.tokens is not None and source.add_bos:
        raise typer.BadParameter("--tokens are taken as given; leave --add-bos out")
    if source.tokens is not None and source.max_samples is not None:
        raise typer.BadParameter("--max-samples counts documents, and --tokens has none; leave one out")


def _read_documents(source: SourceOptions) -> "tuple[str, list[Document]]":
    """Return the true name of a text and its documents."""
    from streamlm.sources.corpus import extract_documents, read_sample

    if source.text is not None:
        return source.text.name, extract_documents({"kind": "path", "format": "text"}, source.text)
    if _is_on_hub(source):
        from streamlm.sources.hub_texts import named_documents

        documents, name = named_documents(
            str(source.dataset_name),
            source.dataset_config,
            source.dataset_split or "test",
            source.max_samples,
        )
        return name, documents
    sample = read_sample(Path("data") / str(source.dataset_name) / "sample.json")
    return sample.dataset, sample.documents
