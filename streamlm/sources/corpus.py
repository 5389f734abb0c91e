"""Read the documents of a corpus from archives or files, and tokenise them to one stream of ids."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.extras import need
from streamlm.records.files import atomic_path
from streamlm.sources.archives import Source, check_archive, extract_members
from streamlm.sources.documents import Document, check_characters, gutenberg_document, text_document


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
            yield path.name, path.read_bytes()
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
        return Sample(record["dataset"], record["source"], documents)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a sample ({error!r}); delete it and run again") from error


def tokenise_documents(
    documents: Sequence[Document], tokenizer_dir: Path, *, add_bos: bool, max_samples: int | None
) -> np.ndarray:
    r"""Join the documents with blank lines, tokenise them once, and return the token ids.

    The only special token added is one BOS at the beginning, if `add_bos`. One that is written in a text,
    such as ``<|endoftext|>``, is that token.

    Args:
        documents: in stream order.
        tokenizer_dir: a transformers folder.
        add_bos: whether the tokenizer's BOS comes before the first token.
        max_samples: the number of documents to take from the beginning; None takes all.

    Returns:
        (T,) int64 token ids of ``"\n\n".join(texts)``.

    Raises:
        ValueError: there are no tokens, or the tokenizer has no BOS to add.
    """
    text = "\n\n".join(document.text for document in documents[:max_samples])
    tokenizer = read_tokenizer(tokenizer_dir)
    bos = [tokenizer.bos_token_id] if add_bos else []
    if bos == [None]:
        raise ValueError(f"add_bos is true but the tokenizer in {tokenizer_dir} has no BOS; use false")
    if not add_bos and tokenizer.bos_token_id in tokenizer("")["input_ids"][:1]:
        warnings.warn(
            f"the tokenizer in {tokenizer_dir} begins a text with BOS, which is left out here; some models "
            "are lost without it: --add-bos, or add_bos in the config, adds it",
            stacklevel=2,
        )
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise ValueError(
            f"no tokens in {len(documents)} documents (max_samples={max_samples}); use more text"
        )
    return np.array(bos + ids, dtype=np.int64)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a model folder.

    Raises:
        ValueError: it is missing or unreadable.
    """
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json; use a model folder with a tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no narrower type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot read the tokenizer in {folder}: {reason}; fetch or convert it again"
        ) from error


def read_tokens(path: Path) -> np.ndarray:
    """Return the token ids in a `.npy` file, (T,) int64.

    Raises:
        ValueError: the file is missing, unreadable or contains something else.
    """
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read token ids from {path}: {error}") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype != np.int64:
        raise ValueError(f"{path} must contain one row of int64 token ids")
    return ids
