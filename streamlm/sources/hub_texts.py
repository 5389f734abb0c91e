"""Read documents from parquet files on a Hugging Face hub, or a mirror of one, fetched or streamed."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, HfFileSystem, is_offline_mode

from streamlm.extras import need
from streamlm.sources.archives import Source
from streamlm.sources.documents import Document, wikitext_documents
from streamlm.sources.hub import explained, matching, parse_repo, snapshot

WIKITEXT = "Salesforce/wikitext"
_CARD = "README.md"


def named_documents(
    name: str, config: str | None, split: str, max_samples: int | None
) -> tuple[list[Document], str]:
    """Return the documents of the data set with this hub id, and its full name.

    They are the first `max_samples` rows of the column `text`; `WIKITEXT` is joined from all its lines.

    Raises:
        ValueError: `name` is not a hub id; and see `fetch_documents`.
    """
    if (found := parse_repo(name)) is None:
        raise ValueError(f"{name!r} is not a data set on a hub; write org/name or org/name@revision")
    lines = found["repo"].lower() == WIKITEXT.lower()
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
            document per row, or ``wikitext``, one line per row.

    Raises:
        ValueError: why it cannot be fetched and what to do, in one line.
    """
    repo, column = source["repo"], source["column"]
    commit, paths = _split_files(source)
    with explained(repo, source["revision"]):
        rows = _open_parquet(paths, in_parts=source["rows"] is not None)
    columns = ", ".join(rows.column_names)
    if column not in rows.column_names:
        raise ValueError(f"{repo} has no column {column!r}; use one of {columns}")
    with explained(repo, source["revision"]):
        values = [row[column] for row in islice(rows, source["rows"])]
    texts = [value for value in values if isinstance(value, str)]
    if source["format"] == "wikitext":
        documents = wikitext_documents(texts)
    else:
        documents = [Document(title=f"{repo}, row {n}", text=text) for n, text in enumerate(texts)]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise ValueError(f"{repo} has no text in column {column!r}; use one of {columns}")
    return documents, {**source, "commit": commit}


def _split_files(source: Source) -> tuple[str, list[str]]:
    """Return the commit of a data set, and the addresses of the parquet files of a split."""
    repo, revision = source["repo"], source["revision"]
    card = snapshot(repo, revision, "dataset", [_CARD]) / _CARD
    commit = card.parent.name
    patterns = _split_patterns(card, repo, source["config"], source["split"])
    if source["rows"] is None or is_offline_mode():
        paths = [str(file) for file in matching(snapshot(repo, commit, "dataset", patterns), patterns)]
    else:
        with explained(repo, revision):
            paths = _remote_files(repo, commit, patterns)
    paths = [path for path in paths if path.endswith(".parquet")]
    if not paths:
        raise ValueError(
            f"{repo} at {revision} has no parquet for config {source['config']}, split {source['split']} "
            f"(looked for {', '.join(patterns)}); scripts of data sets are never run: use a mirror in "
            "parquet, or the revision refs/convert/parquet"
        )
    return commit, paths


def _split_patterns(card: Path, repo: str, config: str | None, split: str) -> list[str]:
    """Return the globs of a split's files: those in the data set's card, or else the usual names."""
    entry = _card_config(card, repo, config)
    data_files = entry.get("data_files")
    if not data_files:
        root = entry.get("data_dir") or config
        roots = [f"{root}/"] if root else ["", "**/"]
        return [f"{root}{name}.parquet" for root in roots for name in (split, f"{split}-*", f"{split}/*")]
    if isinstance(data_files, list) and isinstance(data_files[0], dict):
        splits = {part["split"]: part["path"] for part in data_files}
    else:
        splits = {"train": data_files}  # files without a named split
    if split not in splits:
        raise ValueError(f"{repo} has no split {split!r}; use one of {', '.join(splits)}")
    patterns = [splits[split]] if isinstance(splits[split], str) else list(splits[split])
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern or "://" in pattern:
            raise ValueError(
                f"{repo}: its card names {pattern}, which is outside of it; use another data set"
            )
    return patterns


def _card_config(card: Path, repo: str, config: str | None) -> dict[str, Any]:
    """Return the entry of a config in the data set's card; an empty one if the card has no configs."""
    with explained(repo, card.parent.name):
        listed = (DatasetCard.load(card).data.to_dict().get("configs") if card.is_file() else None) or []
        configs: dict[str | None, dict[str, Any]] = {entry["config_name"]: entry for entry in listed}
    if not configs:
        return {}
    if config is None:
        config = next((name for name, entry in configs.items() if entry.get("default")), None)
        config = next(iter(configs)) if len(configs) == 1 else config
    if config not in configs:
        names = ", ".join(map(str, configs))
        raise ValueError(f"{repo} has no config {config!r}; use one of {names}")
    return configs[config]


def _remote_files(repo: str, commit: str, patterns: Sequence[str]) -> list[str]:
    """Return the addresses of files on the hub, which `datasets` reads piece by piece."""
    root, hub = f"datasets/{repo}@{commit}", HfFileSystem()
    found = {path: None for pattern in patterns for path in sorted(hub.glob(f"{root}/{pattern}"))}
    return [f"hf://{path}" for path in found]


def _open_parquet(paths: list[str], *, in_parts: bool) -> Any:
    """Return the rows of parquet files; if `in_parts`, only the pieces that are needed are read."""
    need("datasets")
    import datasets

    # huggingface_hub has already tried six times; `datasets` would try twenty times more, every five seconds.
    for name in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
        setattr(datasets.config, name, 1)
    for name in ("READ", "READ_SERVER_UNAVAILABLE", "READ_RATE_LIMIT", "OPEN"):
        setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0)
    datasets.logging.set_verbosity(logging.CRITICAL)
    rows = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
    # Otherwise a thread of pyarrow reads ahead, and crashes when the process ends.
    return rows.reshard() if in_parts else rows
