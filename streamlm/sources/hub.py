"""Fetch files and models from a Hugging Face hub, or a mirror of one, with the hub's own client.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as documented for that client. Fetched files
stay in its cache and are copied from there, so a run after a failure fetches only the missing ones. No code
from a hub is ever run: weights are safetensors or GGUF, texts are parquet.

huggingface_hub 1.33 requests a file up to six times after status 429 or 5xx (waiting as `Retry-After` says),
but a listing only once, without a time limit; and it checks sizes, not hashes. A limit and hash checks are
added here.
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

from huggingface_hub import constants, set_client_factory, snapshot_download
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars

from streamlm.extras import need
from streamlm.records.files import atomic_path
from streamlm.sources.archives import Source
from streamlm.sources.hub_errors import OTHERWISE, explain, http

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
        return model_snapshot(**found), str(name)
    except ValueError as error:
        raise ValueError(f"there is no folder {name}; as a name on the hub: {error}") from error


def model_snapshot(repo: str, revision: str) -> Path:
    """Fetch config, tokenizer and safetensors of a model, check their hashes, and return the cached folder.

    Raises:
        ValueError: why it cannot be fetched and what to do, in one line; or the model needs pickles or code.
    """
    from transformers import CONFIG_MAPPING

    folder = snapshot(repo, revision, "model", _MODEL_FILES)
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
    kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{repo} is a model of type {kind!r}, which transformers does not know without the repository's "
            "own code, and no code from a hub is run; use another model"
        )
    return folder


def fetch_model(source: Source, out_dir: Path, title: str) -> None:
    """Write the transformers folder of a model on the hub; on failure nothing is written.

    Args:
        source: `repo` and `revision`; `gguf`, if given, is the GGUF file to convert.
        out_dir: the folder to write; an older one is replaced.
        title: the model's full name, written to config.json as `streamlm_title`.

    Raises:
        ValueError: see `model_snapshot`.
    """
    repo, revision = source["repo"], source["revision"]
    if gguf := source.get("gguf"):
        need("accelerate", "gguf")
        from streamlm.sources.gguf import convert_gguf

        convert_gguf(snapshot(repo, revision, "model", [gguf]) / gguf, out_dir, title)
        return
    cached = model_snapshot(repo, revision)
    with atomic_path(out_dir) as folder:
        folder.mkdir()
        for file in matching(cached, _MODEL_FILES):
            shutil.copyfile(file, folder / file.name)
        config = json.loads((folder / "config.json").read_bytes())
        config |= {"streamlm_title": title, "streamlm_commit": cached.name}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def snapshot(repo: str, revision: str, repo_type: str, patterns: Sequence[str]) -> Path:
    """Fetch the matching files, check their hashes, and return their cached folder, named for the commit."""
    with explained(repo, revision):
        found = snapshot_download(repo, repo_type=repo_type, revision=revision, allow_patterns=[*patterns])
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
        names = ", ".join(file.name for file in wrong)
        raise ValueError(
            f"{names} of {repo} came from {constants.ENDPOINT} with another hash than announced; deleted; "
            f"try again, and if it happens again do not trust this hub, {OTHERWISE}"
        )


_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\..+)")


def _check_parts(files: Sequence[Path], repo: str) -> None:
    """Raise ValueError if parts of a split file are missing, which older clients can leave in a cache."""
    parts = Counter(found.groups() for file in files if (found := _PART.fullmatch(file.name)))
    for (stem, total, suffix), count in parts.items():
        if count != int(total):
            raise ValueError(
                f"the cache has {count} of {int(total)} parts of {stem}{suffix} of {repo}; fetch them "
                f"with `hf download {repo}` where there is a network, {OTHERWISE}"
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
def explained(repo: str, revision: str) -> Iterator[None]:
    """Raise every error of the hub's clients as a ValueError of one line."""
    set_client_factory(_limited_client)
    hub_logging.set_verbosity(logging.ERROR)  # no warnings for its retries: only the last error counts
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except Exception as error:  # the clients share no narrower type
        raise ValueError(f"cannot fetch {repo} at {revision} from {explain(error)}") from error


def _limited_client() -> Any:
    client = default_client_factory()
    client.event_hooks["request"].append(_limit_wait)
    return client


def _limit_wait(request: Any) -> None:
    """Give a request without a time limit that of a download, so that a silent hub cannot block a job."""
    limits: dict[str, Any] = request.extensions.get("timeout", {})
    if limits.get("read") is None:
        request.extensions["timeout"] = http.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT).as_dict()
