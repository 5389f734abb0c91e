"""Models and texts from a Hugging Face hub, or a mirror of one, through the hub's own clients.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to those clients. What is fetched
stays in their cache and is copied from there, so a run after a failure fetches only what is missing. No code
from a hub runs: weights are safetensors or GGUF, texts are parquet.

huggingface_hub 1.33 asks six times for a file that meets 429 or 5xx (after as long as `Retry-After` says), but
once, and without a time limit, for a listing; and it compares sizes, not hashes. Limit and hash are added here.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import (
    DatasetCard,
    HfFileSystem,
    constants,
    is_offline_mode,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.utils import logging
from huggingface_hub.utils._http import default_client_factory

from streamlm.archives import Source
from streamlm.hub_errors import explain
from streamlm.records import atomic_path
from streamlm.text import Document, wikitext_documents

_CARD = "README.md"
_MODEL_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "model.safetensors", "model-*.safetensors",
    "model.safetensors.index.json",
]  # fmt: skip


def looks_like_repo(name: str) -> bool:
    """Return whether `name` has the form of a hub id, ``org/name`` or ``org/name@revision``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", name) is not None


def split_repo(name: str) -> dict[str, str]:
    """Return `repo` and `revision` of ``org/name@revision``; without one it is ``main``."""
    repo, _, revision = name.partition("@")
    return {"repo": repo, "revision": revision or "main"}


def model_snapshot(repo: str, revision: str) -> Path:
    """Return the cached folder with a model's config, tokenizer and safetensors, their hashes compared.

    Raises:
        ValueError: in one line, what could not be had and what to do; or the model needs pickles or code.
    """
    folder = _snapshot(repo, revision, "model", _MODEL_FILES)
    names = {file.name for file in _matching(folder, _MODEL_FILES)}
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{repo} at {revision} has no model.safetensors, and weights in pickles (pytorch_model.bin) are "
            "never loaded, since that runs what they hold; name a revision or repository with safetensors, or "
            "a GGUF file"
        )
    for name in ("config.json", "tokenizer.json"):
        if name not in names:
            raise ValueError(f"{repo} at {revision} has no {name}; name a repository of a whole model")
    from transformers import CONFIG_MAPPING

    kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{repo} is a model of kind {kind!r}, which transformers does not know without the repository's "
            "own code, and no code from a hub is run; name another model"
        )
    return folder


def fetch_model(source: Source, out_dir: Path, title: str) -> None:
    """Write the transformers folder of a model on the hub, whole or not at all.

    Args:
        source: `repo` and `revision`; `gguf` names the weights where they are to be read from a GGUF file.
        out_dir: the folder to make; an older one is replaced.
        title: the model's true name, kept as `streamlm_title` in config.json.

    Raises:
        ValueError: see `model_snapshot`.
    """
    if gguf := source.get("gguf"):
        from streamlm.gguf import convert_gguf

        snapshot = _snapshot(source["repo"], source["revision"], "model", [gguf])
        convert_gguf(snapshot / gguf, out_dir, title)
        return
    snapshot = model_snapshot(source["repo"], source["revision"])
    with atomic_path(out_dir) as folder:
        folder.mkdir()
        for file in _matching(snapshot, _MODEL_FILES):
            shutil.copyfile(file, folder / file.name)
        config = json.loads((folder / "config.json").read_bytes())
        config |= {"streamlm_title": title, "streamlm_commit": snapshot.name}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def fetch_documents(source: Source) -> tuple[list[Document], Source]:
    """Return the documents of a text on the hub, and the source with the `commit` that it was read at.

    Args:
        source: `repo`, `revision`, `config` (or None), `split`, `column`; `rows` is how many first rows are
            streamed, of whose file no hash can be compared, and None fetches all; `format` is ``text``, a
            document a row, or ``wikitext``, a line a row.

    Raises:
        ValueError: in one line, what could not be had and what to do.
    """
    repo, column = source["repo"], source["column"]
    commit, paths = _split_files(source)
    with _explained(repo, source["revision"]):
        rows = _open_parquet(paths)
    if column not in rows.column_names:
        raise ValueError(f"{repo} has no column {column!r}; use one of {', '.join(rows.column_names)}")
    with _explained(repo, source["revision"]):
        values = [row[column] for row in (rows if source["rows"] is None else rows.take(source["rows"]))]
    texts = [value for value in values if isinstance(value, str)]
    if source["format"] == "wikitext":
        documents = wikitext_documents(texts)
    else:
        documents = [Document(title=f"{repo}, row {n}", text=text) for n, text in enumerate(texts)]
    found = [document for document in documents if document.text.strip()]
    if not found:
        raise ValueError(
            f"{repo} has no text in column {column!r}; use one of {', '.join(rows.column_names)}"
        )
    return found, {**source, "commit": commit}


def _split_files(source: Source) -> tuple[str, list[str]]:
    """Return the commit of a data set, and where the parquet files of a split can be read."""
    repo, revision = source["repo"], source["revision"]
    card = _snapshot(repo, revision, "dataset", [_CARD]) / _CARD
    commit = card.parent.name
    patterns = _split_patterns(card, repo, source["config"], source["split"])
    if source["rows"] is None or is_offline_mode():
        paths = [str(file) for file in _matching(_snapshot(repo, commit, "dataset", patterns), patterns)]
    else:
        with _explained(repo, revision):
            paths = _remote_files(repo, commit, patterns)
    paths = [path for path in paths if path.endswith(".parquet")]
    if not paths:
        raise ValueError(
            f"{repo} at {revision} has no parquet for config {source['config']}, split {source['split']} "
            f"(looked for {', '.join(patterns)}); scripts of data sets never run: name a mirror in parquet, or "
            "the revision refs/convert/parquet"
        )
    return commit, paths


def _snapshot(repo: str, revision: str, repo_type: str, patterns: Sequence[str]) -> Path:
    """Return the cached folder of a commit, which is its name, with the files that match, hashes compared."""
    with _explained(repo, revision):
        folder = Path(
            snapshot_download(repo, repo_type=repo_type, revision=revision, allow_patterns=list(patterns))
        )
    for file in _matching(folder, patterns):
        _check_hash(file, repo)
    return folder


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = {file: None for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()}
    return list(found)


def _check_hash(file: Path, repo: str) -> None:
    """Compare a cached file with the hash that the hub gave for it, under which its blob is kept.

    That is the SHA-256 of a large file and git's SHA-1 of a small one. On a mismatch it is deleted, so that
    the next run fetches it anew.
    """
    blob = file.resolve()
    if blob.parent.name != "blobs":  # a file system without symbolic links: the name is lost
        return
    match len(blob.name):
        case 64:
            digest = hashlib.sha256()
        case 40:
            digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
        case _:
            return
    with blob.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        file.unlink()
        blob.unlink(missing_ok=True)
        raise ValueError(
            f"{file.name} of {repo} from {constants.ENDPOINT} has hash {digest.hexdigest()}, announced was "
            f"{blob.name}: deleted; run again, and distrust that hub or mirror (HF_ENDPOINT) if it comes back"
        )


def _split_patterns(card: Path, repo: str, config: str | None, split: str) -> list[str]:
    """Return the globs of a split's files: what the data set's card says, or else the usual places."""
    entry = _card_config(card, repo, config)
    data_files = entry.get("data_files")
    if not data_files:
        root = entry.get("data_dir") or config
        roots = [f"{root}/"] if root else ["", "**/"]
        return [f"{root}{name}.parquet" for root in roots for name in (f"{split}*", f"{split}/*")]
    if isinstance(data_files, list) and isinstance(data_files[0], dict):
        splits = {part["split"]: part["path"] for part in data_files}
    else:
        splits = {"train": data_files}  # what no split is said of
    if split not in splits:
        raise ValueError(f"{repo} has no split {split!r}; use one of {', '.join(splits)}")
    return [splits[split]] if isinstance(splits[split], str) else list(splits[split])


def _card_config(card: Path, repo: str, config: str | None) -> dict[str, Any]:
    """Return the entry of a config in the data set's card; an empty one where the card has none at all."""
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
    """Return addresses of files on the hub that `datasets` reads in parts."""
    root, hub = f"datasets/{repo}@{commit}", HfFileSystem()
    found = {path: None for pattern in patterns for path in sorted(hub.glob(f"{root}/{pattern}"))}
    return [f"hf://{path}" for path in found]


def _open_parquet(paths: list[str]) -> Any:
    """Return the rows of parquet files, of which no more is read than is asked for."""
    import datasets

    # huggingface_hub has tried six times before `datasets` would begin its own twenty, five seconds apart.
    for name in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
        setattr(datasets.config, name, 1)
    for name in ("READ", "READ_SERVER_UNAVAILABLE", "READ_RATE_LIMIT", "OPEN"):
        setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)


@contextmanager
def _explained(repo: str, revision: str) -> Iterator[None]:
    """Turn whatever the hub's clients raise into one line for the user."""
    set_client_factory(_limited_client)
    logging.set_verbosity(logging.ERROR)  # of its retries; what comes of them is said once
    try:
        yield
    except Exception as error:  # the clients share no narrower type
        raise ValueError(f"cannot fetch {repo} at {revision} from {explain(error)}") from error


def _limited_client() -> httpx.Client:
    client = default_client_factory()
    client.event_hooks["request"].append(_limit_wait)
    return client


def _limit_wait(request: httpx.Request) -> None:
    """Give a request without a time limit that of a download: a silent hub must not hold a job for ever."""
    limits: dict[str, Any] = request.extensions.get("timeout", {})
    if limits.get("read") is None:
        request.extensions["timeout"] = httpx.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT).as_dict()
