"""What a Hugging Face hub or a mirror of one holds, through the hub's own clients: its files, and its models.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to those clients. What is
fetched stays in their cache and is copied from there, so a run after a failure fetches only what is missing.
No code from a hub runs: weights are safetensors or GGUF, texts are parquet.

huggingface_hub 1.33 asks six times for a file that meets 429 or 5xx (after as long as `Retry-After` says),
but once, and without a time limit, for a listing; and it compares sizes, not hashes. Limit and hash are added
here.
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

import httpx
from huggingface_hub import (
    constants,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars

from streamlm.records.files import atomic_path
from streamlm.sources.archives import Source
from streamlm.sources.hub_errors import OTHERWISE, explain

_MODEL_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "model.safetensors", "model-*.safetensors",
    "model.safetensors.index.json",
]  # fmt: skip


def parse_repo(name: str) -> dict[str, str] | None:
    """Return `repo` and `revision` (or else ``main``) of ``org/name@revision``; None of any other text."""
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?", name)
    return {"repo": found[1], "revision": found[2] or "main"} if found else None


def find_model(name: Path) -> tuple[Path, str | None]:
    """Return the folder of the model with this hub id, fetched, and its true name; other names as they are.

    Raises:
        ValueError: see `model_snapshot`.
    """
    if (found := parse_repo(str(name))) is None:
        return name, None
    try:
        return model_snapshot(**found), str(name)
    except ValueError as error:
        raise ValueError(f"there is no folder {name}, and of the hub: {error}") from error


def model_snapshot(repo: str, revision: str) -> Path:
    """Return the cached folder with a model's config, tokenizer and safetensors, their hashes compared.

    Raises:
        ValueError: in one line, what could not be had and what to do; or the model needs pickles or code.
    """
    folder = snapshot(repo, revision, "model", _MODEL_FILES)
    names = {file.name for file in matching(folder, _MODEL_FILES)}
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{repo} at {revision} has no model.safetensors, and weights in pickles (pytorch_model.bin) are "
            "never loaded, since that runs what they hold; name a revision or repository with safetensors, "
            "or a GGUF file"
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
        from streamlm.sources.gguf import convert_gguf

        cached = snapshot(source["repo"], source["revision"], "model", [gguf])
        convert_gguf(cached / gguf, out_dir, title)
        return
    cached = model_snapshot(source["repo"], source["revision"])
    with atomic_path(out_dir) as folder:
        folder.mkdir()
        for file in matching(cached, _MODEL_FILES):
            shutil.copyfile(file, folder / file.name)
        config = json.loads((folder / "config.json").read_bytes())
        config |= {"streamlm_title": title, "streamlm_commit": cached.name}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def snapshot(repo: str, revision: str, repo_type: str, patterns: Sequence[str]) -> Path:
    """Return the cached folder of a commit, which is its name, with the files that match, hashes compared."""
    with explained(repo, revision):
        folder = Path(
            snapshot_download(repo, repo_type=repo_type, revision=revision, allow_patterns=list(patterns))
        )
    files = matching(folder, patterns)
    _check_hashes(files, repo)
    _check_parts(files, repo)
    return folder


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files below a folder that match, in the order of the patterns, each once."""
    found = {file: None for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()}
    return list(found)


def _check_hashes(files: Sequence[Path], repo: str) -> None:
    """Delete and name cached files that are not what the hub announced; the next run fetches them anew."""
    wrong = [file for file in files if not _hash_fits(file.resolve())]
    for file in wrong:
        file.resolve().unlink(missing_ok=True)
        file.unlink()
    if wrong:
        names = ", ".join(file.name for file in wrong)
        raise ValueError(
            f"{names} of {repo} came from {constants.ENDPOINT} with another hash than announced; deleted; "
            f"try again, and if that does not help distrust this hub, {OTHERWISE}"
        )


_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\..+)")


def _check_parts(files: Sequence[Path], repo: str) -> None:
    """Refuse a file in parts of which some are missing, as an older client can leave them in a cache."""
    parts = Counter(found.groups() for file in files if (found := _PART.fullmatch(file.name)))
    for (stem, total, suffix), count in parts.items():
        if count != int(total):
            raise ValueError(
                f"of {stem}{suffix} of {repo} the cache has {count} of {int(total)} parts; fetch it again "
                f"with `hf download {repo}` where there is a network, {OTHERWISE}"
            )


def _hash_fits(blob: Path) -> bool:
    """Compare a cached file with its name, SHA-256 of a large one and git's SHA-1 of a small one."""
    if blob.parent.name != "blobs":  # a file system without symbolic links: the name is lost
        return True
    match len(blob.name):
        case 64:
            digest = hashlib.sha256()
        case 40:
            digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
        case _:
            return True
    with blob.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == blob.name


@contextmanager
def explained(repo: str, revision: str) -> Iterator[None]:
    """Turn whatever the hub's clients raise into one line for the user."""
    set_client_factory(_limited_client)
    hub_logging.set_verbosity(logging.ERROR)  # not of its retries: what comes of them is said once
    if not sys.stderr.isatty():
        disable_progress_bars()
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
