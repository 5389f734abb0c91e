"""Fetch files and models from a Hugging Face hub, or a mirror of one, with the hub's own client.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as documented for that client. Fetched files
stay in its cache and are copied from there, so a run after a failure fetches only the missing ones. No code
from a hub is ever run: weights are safetensors or GGUF, texts are parquet.

huggingface_hub 1.33 requests a file up to six times after status 429 or 5xx (waiting as `Retry-After` says),
but a listing only once; and it checks sizes, not hashes. Hash checks are added here, and the hub is not
trusted in what it answers (`hub_client`).
"""

import hashlib
import json
import logging
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

from streamlm import limits
from streamlm.extras import need
from streamlm.input_files import load_json
from streamlm.records.files import atomic_path
from streamlm.sources.archives import Source
from streamlm.sources.hub_client import checked_client, is_inside
from streamlm.sources.hub_errors import OTHERWISE, HubUnreachable, explain, is_unreachable, shown

_MODEL_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "model.safetensors", "model-*.safetensors",
    "model.safetensors.index.json",
]  # fmt: skip


def parse_repo(name: str) -> dict[str, str] | None:
    """Return `repo` and `revision` (default ``main``) of ``org/name@revision``; None for other text."""
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?", name)
    return {"repo": found[1], "revision": found[2] or "main"} if found else None


def named_model(name: Path) -> tuple[Path, str | None]:
    """Return folder and title of the model with this hub id; a name that is not an id is returned as it is.

    Raises:
        ValueError: see `model_snapshot`.
    """
    if (found := parse_repo(str(name))) is None:
        return name, None
    try:
        return model_snapshot(found["repo"], found["revision"]), str(name)
    except ValueError as error:
        raise ValueError(f"there is no folder {name}; as a name on the hub: {error}") from error


def model_snapshot(repo: str, revision: str, max_gb: float = limits.HUB_MODEL_GB) -> Path:
    """Fetch config, tokenizer and safetensors of a model, check their hashes, and return the cached folder.

    Args:
        repo: ``org/name``.
        revision: branch, tag or commit.
        max_gb: how many gigabytes are fetched at most.

    Raises:
        ValueError: why it cannot be fetched and what to do, in one line; or the model needs pickles or code.
    """
    from transformers import CONFIG_MAPPING

    folder = snapshot(repo, revision, "model", _MODEL_FILES, max_gb)
    names = {file.name for file in matching(folder, _MODEL_FILES)}
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{repo} at {revision} has no model.safetensors, and pickled weights (pytorch_model.bin) are "
            "never loaded, since they can run code; use a revision or repository with safetensors, or a "
            "GGUF file"
        )
    for name in ("config.json", "tokenizer.json"):
        if name not in names:
            raise ValueError(f"{repo} at {revision} has no {name}; use a repository of a complete model")
    kind = _read_config(folder, repo).get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{repo} is a model of type {shown(repr(kind))}, which transformers does not know without the "
            "repository's own code, and no code from a hub is run; use another model"
        )
    return folder


def fetch_model(source: Source, out_dir: Path, title: str) -> None:
    """Write the transformers folder of a model on the hub; on failure nothing is written.

    Args:
        source: `repo` and `revision`; `gguf`, if given, is the GGUF file to convert; `max_gb`, if given, is
            how many gigabytes are fetched at most.
        out_dir: the folder to write; an older one is replaced.
        title: the model's full name, written to config.json as `streamlm_title`.

    Raises:
        ValueError: see `model_snapshot`.
    """
    repo, revision = source["repo"], source["revision"]
    max_gb = source.get("max_gb", limits.HUB_MODEL_GB)
    if gguf := source.get("gguf"):
        need("accelerate", "gguf")
        from streamlm.sources.gguf import convert_gguf

        convert_gguf(_gguf_snapshot(repo, revision, gguf, max_gb), out_dir, title)
        return
    cached = model_snapshot(repo, revision, max_gb)
    with atomic_path(out_dir) as folder:
        folder.mkdir()
        for file in matching(cached, _MODEL_FILES):
            shutil.copyfile(file, folder / file.name)
        config = _read_config(folder, repo)
        config |= {"streamlm_title": title, "streamlm_commit": cached.name}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _gguf_snapshot(repo: str, revision: str, name: str, max_gb: float) -> Path:
    """Fetch a GGUF file, check its hash, and return its cached path."""
    if not is_inside(name):
        raise ValueError(f"gguf {name!r} is not a file of {repo}; use a name from its list of files")
    file = snapshot(repo, revision, "model", [name], max_gb) / name
    if not file.is_file():
        raise ValueError(f"{repo} at {revision} has no {name}; use a name from its list of files")
    return file


def _read_config(folder: Path, repo: str) -> dict[str, Any]:
    """Return what config.json has; raise ValueError if that is not a section of JSON."""
    try:
        config = load_json(folder / "config.json", max_bytes=limits.JSON_BYTES, max_depth=limits.JSON_DEPTH)
        if isinstance(config, dict):
            return config
        raise ValueError("it is no JSON object")
    except ValueError as error:
        raise ValueError(
            f"config.json of {repo} cannot be read: {shown(str(error))}; use another model"
        ) from error


class _Bar(tqdm):
    """A bar at the terminal itself: by way of sys.stderr, commands let nothing move the cursor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"file": sys.__stderr__})  # type: ignore[no-untyped-call]


def snapshot(repo: str, revision: str, repo_type: str, patterns: Sequence[str], max_gb: float) -> Path:
    """Fetch the matching files, check their hashes, and return their cached folder, named for the commit."""
    if not is_inside(revision):
        raise ValueError(f"{revision!r} is not a revision of {repo}; use a branch, tag or commit")
    with explained(repo, revision, max_gb):
        found = snapshot_download(
            repo, repo_type=repo_type, revision=revision, allow_patterns=[*patterns], tqdm_class=_Bar
        )
    folder = Path(found)
    files = matching(folder, patterns)
    _check_hashes(files, repo)
    _check_parts(files, repo)
    return folder


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return each matching file below a folder once, in the order of the patterns."""
    found = {file: None for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()}
    return list(found)


def _check_hashes(files: Sequence[Path], repo: str) -> None:
    """Delete and report cached files whose hash differs from the hub's; the next run fetches them again."""
    wrong = [file for file in files if not _hash_fits(file.resolve())]
    for file in wrong:
        file.resolve().unlink(missing_ok=True)
        file.unlink()
    if wrong:
        names = shown(", ".join(file.name for file in wrong))
        raise ValueError(
            f"{names} of {repo} came from {shown(constants.ENDPOINT)} with another hash than announced; "
            f"deleted; try again, and if it happens again do not trust this hub, {OTHERWISE}"
        )


_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\..+)")


def _check_parts(files: Sequence[Path], repo: str) -> None:
    """Raise ValueError if parts of a split file are missing, which older clients can leave in a cache."""
    parts = Counter(found.groups() for file in files if (found := _PART.fullmatch(file.name)))
    for (stem, total, suffix), count in parts.items():
        if count != int(total):
            raise ValueError(
                f"the cache has {count} of {int(total)} parts of {shown(stem + suffix)} of {repo}; fetch "
                f"them with `hf download {repo}` where there is a network, {OTHERWISE}"
            )


def _hash_fits(blob: Path) -> bool:
    """Return whether a cached file fits its name: SHA-256 for large files, git's SHA-1 for small ones."""
    hashes = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\0" % blob.stat().st_size)}
    if blob.parent.name != "blobs" or len(blob.name) not in hashes:
        return True  # on a file system without symbolic links the hash is unknown
    with blob.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: hashes[len(blob.name)])
    return digest.hexdigest() == blob.name


@contextmanager
def explained(repo: str, revision: str, max_gb: float) -> Iterator[None]:
    """Let the hub's clients fetch up to `max_gb`, and raise all their errors as a ValueError of one line."""
    hub_logging.set_verbosity(logging.ERROR)  # no warnings for its retries: only the last error counts
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with checked_client(max_gb):
            yield
    except Exception as error:  # the clients share no narrower type
        kind = HubUnreachable if is_unreachable(error) else ValueError
        raise kind(f"cannot fetch {repo} at {revision} from {explain(error)}") from error
