"""Read the documents of a corpus from archives or files, and tokenise them to one stream of ids."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np

from streamlm import limits
from streamlm.extras import need
from streamlm.input_files import read_bytes
from streamlm.records.files import atomic_path
from streamlm.sources.archives import Source, check_archive, extract_members
from streamlm.sources.documents import Document, check_characters, gutenberg_document, text_document
from streamlm.sources.tokens import tokenise


@dataclass(frozen=True)
class Sample:
    """The documents of one corpus, its title and its source."""

    dataset: str
    source: Source
    documents: list[Document]


def _mediawiki_documents(name: str, raw: bytes) -> Iterable[Document]:
    need("mwparserfromhell")
    from streamlm.sources.mediawiki import mediawiki_documents

    return mediawiki_documents(raw)


_FORMATS: dict[str, Callable[[str, bytes], Iterable[Document]]] = {
    "mediawiki": _mediawiki_documents,
    "gutenberg": lambda name, raw: [gutenberg_document(name, raw)],
    "text": lambda name, raw: [text_document(name, raw)],
}


def extract_documents(source: Source, path: Path) -> list[Document]:
    """Return the documents of a corpus, in order.

    Args:
        source: its `format` and `kind`, and `members` where the kind is `package`.
        path: the archive (kind `package`) or the file itself (kind `path`).

    Raises:
        ValueError: the kind or format is unknown, or there is no text.
    """
    if source["format"] not in _FORMATS:
        raise ValueError(f"unknown format {source['format']!r}; use one of {', '.join(_FORMATS)}")
    read = _FORMATS[source["format"]]
    found = [document for name, raw in _source_files(source, path) for document in read(name, raw)]
    documents = [document for document in found if document.text]
    for document in documents:
        check_characters(document.title or path.name, document.text)
    if not documents:
        raise ValueError(f"no text in {path} (format {source['format']}); correct the source in the config")
    return documents


def _source_files(source: Source, path: Path) -> Iterator[tuple[str, bytes]]:
    match source["kind"]:
        case "package":
            check_archive(source, path)
            yield from extract_members(path, source["members"])
        case "path" if path.is_file():
            yield path.name, read_bytes(path, limits.TEXT_BYTES)
        case "path":
            raise ValueError(f"no such file: {path}; correct the path")
        case kind:
            raise ValueError(f"unknown kind of source {kind!r}; use package or path")


def write_sample(target: Path, dataset_name: str, source: Source, documents: Sequence[Document]) -> None:
    """Write a corpus as JSON; equal content gives equal bytes."""
    record = {"dataset": dataset_name, "source": dict(source), "documents": [asdict(d) for d in documents]}
    text = json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    with atomic_path(target) as made:
        made.write_bytes(text.encode())


def read_sample(path: Path) -> Sample:
    """Return what `write_sample` wrote.

    Raises:
        ValueError: the file is missing or not a sample.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}; make it with `snakemake {path}` in the project's folder")
    try:
        record = json.loads(path.read_bytes())
        documents = [Document(**document) for document in record["documents"]]
        sample = Sample(record["dataset"], record["source"], documents)
        for text in (sample.dataset, *(part for document in documents for part in astuple(document))):
            check_characters(str(path), text)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a sample ({error!r}); delete it and run again") from error
    return sample


def tokenise_documents(
    documents: Sequence[Document], tokenizer_dir: Path, *, add_bos: bool, max_samples: int | None
) -> np.ndarray:
    r"""Return the token ids (T,) of the documents, joined with blank lines, as `tokens.tokenise` does.

    Args:
        documents: in stream order.
        tokenizer_dir: a transformers folder.
        add_bos: whether the tokenizer's BOS comes before the first token.
        max_samples: the number of documents to take from the beginning; None takes all.

    Raises:
        ValueError: there are no tokens, or the tokenizer has no BOS to add.
    """
    return tokenise(join_documents(documents[:max_samples]), tokenizer_dir, add_bos=add_bos)


def join_documents(documents: Iterable[Document]) -> Iterator[str]:
    """Yield the texts of documents, and the blank lines between them."""
    for i, document in enumerate(documents):
        if i:
            yield "\n\n"
        yield document.text
