"""The model and the token ids that the options of a command ask for."""

import warnings
from contextlib import ExitStack
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
    from streamlm.input_files import open_text, read_tokens
    from streamlm.records.names import check_name
    from streamlm.sources.corpus import join_documents
    from streamlm.sources.documents import text_pieces
    from streamlm.sources.tokens import tokenise

    model_dir, title = find_model(source.model_name)
    if source.tokens is not None:
        name = check_name(source.tokens.name, "the file of tokens")
        return Inputs(model_dir, title, read_tokens(source.tokens)[:max_tokens], name)
    with ExitStack() as stack:
        if source.text is not None:
            name = check_name(source.text.name, "the text")
            texts = text_pieces(name, stack.enter_context(open_text(source.text)))
        else:
            name, documents = _read_documents(source)
            texts = join_documents(documents[: source.max_samples])
        ids = tokenise(texts, model_dir, add_bos=source.add_bos, max_tokens=max_tokens)
    return Inputs(model_dir, title, ids, name)


def _hub_name(source: SourceOptions) -> str | None:
    """Return the hub id that is asked for; the stored texts have one where a config or split is named."""
    name = str(source.data_set)
    if name in ROLES:
        return ROLES[name][0] if source.dataset_config or source.dataset_split else None
    return name if "/" in name else None


def _check_source(source: SourceOptions) -> None:
    """Refuse options that contradict each other."""
    name, on_hub = source.data_set, _hub_name(source) is not None
    if [name, source.text, source.tokens].count(None) != 2:
        raise typer.BadParameter("give only one of --dataset-name, --text and --tokens")
    if name is not None and name not in ROLES and not on_hub:
        known = ", ".join(ROLES)
        raise typer.BadParameter(f"unknown --dataset-name {name!r}; known are {known}, and hub ids, org/name")
    for option, value in (("config", source.dataset_config), ("split", source.dataset_split)):
        if value is not None and not on_hub:
            raise typer.BadParameter(
                f"--dataset-{option} belongs to --dataset-name; leave out --text and --tokens"
            )
    if on_hub and Path(str(name)).exists() and name not in ROLES:
        raise typer.BadParameter(f"{name} is a file here; give it as --text or --tokens")
    if source.tokens is not None and source.add_bos:
        raise typer.BadParameter("--tokens are taken as given; leave --add-bos out")
    if source.tokens is not None and source.max_samples is not None:
        raise typer.BadParameter("--max-samples counts documents, and --tokens has none; leave one out")
    if source.trust_remote_code:
        warnings.warn(
            "--trust-remote-code does nothing: code of a hub is never run, models and data sets are read as "
            "safetensors and parquet",
            stacklevel=2,
        )


def _read_documents(source: SourceOptions) -> "tuple[str, list[Document]]":
    """Return the true name of a data set and its documents."""
    name = _hub_name(source)
    if name is None:
        return _stored_documents(source)
    from streamlm.sources.hub_errors import HubUnreachable
    from streamlm.sources.hub_texts import named_documents

    config = source.dataset_config or ROLES.get(str(source.data_set), ("", None))[1]
    try:
        documents, title = named_documents(name, config, source.dataset_split or "test", source.max_samples)
    except HubUnreachable as error:
        if source.data_set not in ROLES:
            raise
        title, documents = _stand_in(source, name, error)
    return title, documents


def _stored_documents(source: SourceOptions) -> "tuple[str, list[Document]]":
    """Return the true name and the documents of a text that the workflow stored."""
    from streamlm.records.names import check_name
    from streamlm.sources.corpus import read_sample

    sample = read_sample(source.sample)
    return check_name(sample.dataset, "the stored text"), sample.documents


def _stand_in(source: SourceOptions, name: str, error: ValueError) -> "tuple[str, list[Document]]":
    """Return the stored text of the role that a data set has, and warn; raise ValueError if there is none."""
    try:
        title, documents = _stored_documents(source)
    except ValueError as missing:
        raise ValueError(f"{error}; nor can the packaged text stand in: {missing}") from error
    asked = " ".join(part for part in (name, source.dataset_config, source.dataset_split) if part)
    warnings.warn(f"there is no hub to fetch {asked} from: {title} stands in", stacklevel=2)
    return title, documents
