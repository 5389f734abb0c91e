"""Read documents from parquet files on a Hugging Face hub, or a mirror of one, fetched or streamed."""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, HfFileSystem, is_offline_mode

from streamlm import limits
from streamlm.config import ROLES
from streamlm.extras import need
from streamlm.sources.archives import Source
from streamlm.sources.documents import Document, wikitext_documents
from streamlm.sources.hub import explained, matching, parse_repo, snapshot
from streamlm.sources.hub_client import is_inside
from streamlm.sources.hub_errors import UntrustedAnswer, shown

_CARD = "README.md"
_HUB = "hf://datasets/"


def named_documents(
    name: str, config: str | None, split: str, max_samples: int | None
) -> tuple[list[Document], str]:
    """Return the documents of the data set with this hub id, and its full name.

    They are the first `max_samples` rows of the column `text`; WikiText's are joined from all its lines.

    Raises:
        ValueError: `name` is not a hub id; and see `fetch_documents`.
    """
    if (found := parse_repo(name)) is None:
        raise ValueError(f"{name!r} is not a data set on a hub; write org/name or org/name@revision")
    lines = found["repo"].lower() == ROLES["wikitext"][0].lower()
    documents, _ = fetch_documents(
        {
            **found, "config": config, "split": split, "column": "text",
            "format": "wikitext" if lines else "text", "rows": None if lines else max_samples,
        }
    )  # fmt: skip
    return documents, " ".join(part for part in (name, config, split) if part)


def fetch_documents(source: Source) -> tuple[list[Document], Source]:
    """Return the documents of a text on the hub, and the source with the `commit` that was read.

    Args:
        source: `repo`, `revision`, `config` (or None), `split`, `column`; `rows`, how many rows are streamed
            from the beginning (no hash can be checked then), or None to fetch all; `format`: ``text``, one
            document per row, or ``wikitext``, one line per row; `max_gb`, if given, how many gigabytes are
            fetched, and how many the text has, at most.

    Raises:
        ValueError: why it cannot be fetched and what to do, in one line.
    """
    need("pyarrow")  # before a hub is asked: what is missing here is no fault of it
    repo, column = source["repo"], source["column"]
    max_gb = source.get("max_gb", limits.HUB_TEXT_GB)
    commit, paths = _split_files(source, max_gb)
    with explained(repo, source["revision"], max_gb):
        first = _open_parquet(paths[0])
    columns = _listed(first.schema_arrow.names)
    if column not in first.schema_arrow.names:
        raise ValueError(f"{repo} has no column {column!r}; use one of {columns}")
    with explained(repo, source["revision"], max_gb):
        files = chain([first], map(_open_parquet, paths[1:]))
        # A batch is not complete before its last row has come, however far that is.
        rows = _values(files, column, n_rows=limits.HUB_BATCH_ROWS if source["rows"] is None else 1)
        values = list(_up_to(max_gb, islice(rows, source["rows"])))
    texts = [value for value in values if isinstance(value, str)]
    if source["format"] == "wikitext":
        documents = wikitext_documents(texts)
    else:
        documents = [Document(title=f"{repo}, row {n}", text=text) for n, text in enumerate(texts)]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise ValueError(f"{repo} has no text in column {column!r}; use one of {columns}")
    return documents, {**source, "commit": commit}


def _up_to(max_gb: float, values: Iterable[Any]) -> Iterator[Any]:
    """Yield values until their characters are more than `max_gb` billion; then raise ValueError."""
    left = max_gb * 10**9
    for value in values:
        left -= len(value) if isinstance(value, str) else 0
        if left < 0:
            remedy = "take fewer rows, or raise max_gb of the source in the config"
            raise UntrustedAnswer(f"its text has more than {max_gb:g} GB", remedy)
        yield value


def _listed(names: Iterable[str]) -> str:
    """Return the names that can be used instead, as a line shows them."""
    return shown(", ".join(names))


def _split_files(source: Source, max_gb: float) -> tuple[str, list[str]]:
    """Return the commit of a data set, and the addresses of the parquet files of a split."""
    repo, revision = source["repo"], source["revision"]
    card = snapshot(repo, revision, "dataset", [_CARD], max_gb) / _CARD
    commit = card.parent.name
    patterns = _split_patterns(card, repo, source["config"], source["split"])
    if source["rows"] is None or is_offline_mode():
        folder = snapshot(repo, commit, "dataset", patterns, max_gb)
        names = [file.relative_to(folder).as_posix() for file in matching(folder, patterns)]
        root = f"{folder}/"
    else:
        root = f"{_HUB}{repo}@{commit}/"
        with explained(repo, revision, max_gb):
            names = _remote_files(root, patterns)
    for name in names:
        if not is_inside(name):
            raise ValueError(
                f"{repo} has a file {shown(repr(name))}, whose name leads out of it; use another data set"
            )
    if not names:
        raise ValueError(
            f"{repo} at {revision} has no parquet for config {source['config']}, split {source['split']} "
            f"(looked for {_listed(patterns)}); scripts of data sets are never run: use a mirror in "
            "parquet, or the revision refs/convert/parquet"
        )
    return commit, [root + name for name in names]


def _split_patterns(card: Path, repo: str, config: str | None, split: str) -> list[str]:
    """Return the globs of a split's parquet files: those in the data set's card, or else the usual names."""
    entry = _card_config(card, repo, config)
    if data_files := entry.get("data_files"):
        splits = _card_splits(data_files, repo)
        if split not in splits:
            raise ValueError(f"{repo} has no split {split!r}; use one of {_listed(splits)}")
        patterns = splits[split]
    else:
        root = entry.get("data_dir") or config
        roots = [f"{root}/"] if root else ["", "**/"]
        patterns = [f"{root}{name}.parquet" for root in roots for name in (split, f"{split}-*", f"{split}/*")]
    for pattern in patterns:
        if not is_inside(pattern):
            raise ValueError(
                f"{repo}: its card or config names {shown(repr(pattern))}, which is outside of it; use "
                "another data set"
            )
        if pattern.count("**") > limits.HUB_ANY_FOLDERS:
            raise ValueError(
                f"{repo}: its card names {shown(repr(pattern))}, with more than {limits.HUB_ANY_FOLDERS} **; "
                "use another data set"
            )
    return [_parquet_of(pattern) for pattern in patterns]


def _parquet_of(pattern: str) -> str:
    """Return the pattern that takes only the parquet files of another, so that nothing else is fetched."""
    if ".parquet" in pattern.rpartition("/")[2] or not pattern.endswith("*"):
        return pattern
    return f"{pattern}/*.parquet" if pattern.endswith("**") else f"{pattern}.parquet"


def _card_splits(data_files: Any, repo: str) -> dict[str, list[str]]:
    """Return the patterns of each split in a card's `data_files`, in any form that a card may have."""
    if isinstance(data_files, list) and isinstance(data_files[0], dict):
        parts = [(part.get("split"), part.get("path")) for part in data_files if isinstance(part, dict)]
    elif isinstance(data_files, dict):
        parts = [*data_files.items()]
    else:
        parts = [("train", data_files)]  # files without a named split
    splits = {}
    for split, paths in parts:
        paths = [paths] if isinstance(paths, str) else paths
        if not (
            isinstance(split, str) and isinstance(paths, list) and all(isinstance(p, str) for p in paths)
        ):
            raise ValueError(
                f"{repo}: data_files of its card are not a split and a path each; use another data set"
            )
        splits[split] = paths
    return splits


def _card_config(card: Path, repo: str, config: str | None) -> dict[str, Any]:
    """Return the entry of a config in the data set's card; an empty one if the card has no configs."""
    configs = {str(entry["config_name"]): entry for entry in _card_configs(card, repo)}
    if not configs:
        return {}
    if config is None:
        config = next((name for name, entry in configs.items() if entry.get("default")), None)
        config = next(iter(configs)) if len(configs) == 1 else config
    if config not in configs:
        raise ValueError(f"{repo} has no config {config!r}; use one of {_listed(configs)}")
    return configs[config]


def _card_configs(card: Path, repo: str) -> list[dict[str, Any]]:
    """Return the entries of all configs in the data set's card."""
    if not card.is_file():
        return []
    if card.stat().st_size > limits.HUB_CARD_BYTES:
        raise ValueError(
            f"{repo}: its card has more than {limits.HUB_CARD_BYTES:,} bytes; use another data set"
        )
    try:
        # Without empty lines, of which many keep the search for the end of the YAML busy for hours.
        lines = [line for line in card.read_text(encoding="utf-8").splitlines() if line.strip()]
        configs = DatasetCard("\n".join(lines)).data.get("configs") or []
    except Exception as error:  # YAML's own errors, and whatever the keys of a card run into
        raise ValueError(
            f"{repo}: its card cannot be read: {shown(str(error))}; use another data set"
        ) from error
    for entry in configs if isinstance(configs, list) else [None]:
        name, root = (
            (entry.get("config_name"), entry.get("data_dir")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(name, str | int | float) or not isinstance(root, str | None):
            raise ValueError(
                f"{repo}: configs of its card are not sections with a config_name; use another data set"
            )
    return configs


def _remote_files(root: str, patterns: Sequence[str]) -> list[str]:
    """Return the names of the matching files in a repository on the hub, in the order of the patterns."""
    start = root.removeprefix("hf://")
    names = [path.removeprefix(start) for path in sorted(HfFileSystem().find(start))]
    found = {
        name: None for pattern in patterns for name in names if _fits(name.split("/"), pattern.split("/"))
    }
    return list(found)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path fit those of a pattern; fsspec takes hours for some of them."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _open_parquet(path: str) -> Any:
    """Open a parquet file here or on the hub, of which only the pieces that are needed are fetched."""
    from pyarrow.parquet import ParquetFile

    file = HfFileSystem().open(path) if path.startswith(_HUB) else path
    return ParquetFile(file, buffer_size=limits.HUB_BUFFER_BYTES, pre_buffer=False)


def _values(files: Iterable[Any], column: str, n_rows: int) -> Iterator[Any]:
    """Yield the values of a column of parquet files, of which `n_rows` at a time are in memory."""
    for file in files:
        for rows in file.iter_batches(n_rows, columns=[column], use_threads=False):
            yield from rows[column].to_pylist()
