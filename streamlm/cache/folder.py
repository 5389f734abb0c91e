"""A model folder that somebody else wrote: what it says is checked, within bounds, before it is used.

transformers does what a config asks: it imports packages, fetches code for the attention, reads other files.
Here it reads a copy without these keys.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from streamlm.characters import without_steering
from streamlm.input_files import check_regular, load_json
from streamlm.limits import JSON_BYTES, JSON_DEPTH, MODEL_SIZE, TOKENIZER_BYTES

# What makes transformers import a package, fetch code or read a file that the folder names; so do keys of
# attention and experts, and names of files.
_UNTRUSTED_KEYS = {"auto_map", "use_kernels", "kernel_config", "transformers_weights", "init_inputs"}
_UNPACKED = ("fp8", "mxfp4")  # what transformers itself can unpack; the rest needs a package
# Words in keys whose numbers may be larger than a size: counts of tokens, ids, bases of frequencies.
_NO_SIZE = {
    "position", "positions", "length", "len", "window", "theta", "base", "freq", "seq", "ctx", "token",
    "tokens", "id", "ids", "seed", "params", "parameters",
}  # fmt: skip
_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


class FolderError(ValueError):
    """Why a model folder is refused, in one line."""


@contextmanager
def explained_folder(what: str, remedy: str = "fetch or convert it again") -> Iterator[None]:
    """Raise whatever goes wrong with a stranger's files as a ValueError of one line.

    Args:
        what: is read, such as ``the model in FOLDER``.
        remedy: what to do.
    """
    try:
        yield
    except (FolderError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise FolderError(f"there is no memory for {what}") from error
    except BaseException as error:  # of any code of transformers; of Rust, a panic, which is no Exception
        raise FolderError(f"{what} cannot be read: {reason_of(error)}; {remedy}") from error


def reason_of(error: BaseException) -> str:
    """Return why something failed, in one line that steers no terminal."""
    reason = without_steering(" ".join(str(error).split()))[:300]
    is_terse = isinstance(error, LookupError) or not reason
    return f"{type(error).__name__} {reason}".rstrip() if is_terse else reason


def read_object(path: Path, max_bytes: int = JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder.

    Raises:
        ValueError: it is missing, too large or no UTF-8, holds no JSON object, is nested deeply, or names a
            key twice.
    """
    with explained_folder(str(path)):
        content = load_json(path, max_bytes=max_bytes, max_depth=JSON_DEPTH)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object was expected, not a {type(content).__name__}")
    return content


def _without_untrusted(value: Any) -> Any:
    """Return what a config says, but for its untrusted keys, at any depth."""
    if isinstance(value, list):
        return [_without_untrusted(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_untrusted(each) for key, each in value.items() if not _is_untrusted(key)}


def _is_untrusted(key: str) -> bool:
    is_implementation = key.lstrip("_").startswith(("attn_implementation", "experts_implementation"))
    return is_implementation or key in _UNTRUSTED_KEYS or key.endswith("_file")


def check_values(value: Any) -> None:
    """Raise ValueError unless the numbers in a config, at any depth, can be those of a model."""
    if isinstance(value, list):
        for each in value:
            check_values(each)
    for key, each in value.items() if isinstance(value, dict) else ():
        if key.endswith("_token_id"):
            _check_token_ids(key, each)
        elif isinstance(each, int) and abs(each) > MODEL_SIZE and _NO_SIZE.isdisjoint(key.split("_")):
            raise ValueError(f"{key:.60} is {each:.3g}, and no size of a model is above {MODEL_SIZE:,}")
        elif isinstance(each, float) and not isfinite(each):
            raise ValueError(f"{key:.60} is {each}, and a finite number was expected")
        else:
            check_values(each)


def _check_token_ids(key: str, ids: Any) -> None:
    for token in ids if isinstance(ids, list) else [ids]:
        if token is not None and type(token) is not int:
            raise ValueError(f"{key:.60} is {ids!r:.60}; a token id was expected, or a list of them")


def _unpacked(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose weights, if they are quantised, are unpacked as they are read.

    Raises:
        ValueError: if that needs a package that the config names.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    text = config.get("text_config")
    if isinstance(text, dict) and not settings:
        return config | {"text_config": _unpacked(text)}
    if not settings:
        return config
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in _UNPACKED:
        raise FolderError(
            f"the model is quantised by {method or settings!r:.60}, and the packages that a config names are "
            "not used; take its unquantised weights"
        )
    return config | {"quantization_config": settings | {"dequantize": True}}


@contextmanager
def settings_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder with the settings that are in a model folder, without their untrusted keys."""
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            if (folder / name).exists():
                content = _without_untrusted(read_object(folder / name))
                if name == "config.json":
                    with explained_folder(str(folder / name)):
                        check_values(content)
                    content = _unpacked(content)
                (Path(place) / name).write_text(json.dumps(content), encoding="utf-8")
        yield Path(place)


@contextmanager
def tokenizer_files(folder: Path) -> Iterator[Path]:
    """A temporary folder with what a tokenizer is read from; settings are without their untrusted keys.

    Raises:
        ValueError: if one is too large, or settings are no JSON objects.
    """
    with settings_files(folder, _SETTINGS) as place:
        for file in folder.iterdir():
            if file.suffix not in _TOKENIZER_SUFFIXES or file.name in _SETTINGS or not file.is_file():
                continue
            if file.name == "tokenizer.json":
                with explained_folder(str(file)):
                    check_regular(file, TOKENIZER_BYTES)
            if file.stat().st_size <= TOKENIZER_BYTES:  # a larger one is a text that lies there
                (place / file.name).symlink_to(file.resolve())
        if (folder / "tokenizer.json").is_file():
            with explained_folder(f"the tokenizer in {folder}"):
                _check_vocabulary(json.loads((folder / "tokenizer.json").read_bytes()))
        yield place


def _check_vocabulary(tokenizer: dict[str, Any]) -> None:
    """Raise ValueError if the library would reserve memory for ids that no vocabulary has."""
    vocabulary = tokenizer["model"].get("vocab")
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
    ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
    for token in ids:
        if type(token) is not int or not 0 <= token < MODEL_SIZE:
            raise ValueError(f"{token!r:.40} is no token id; they are from 0 to {MODEL_SIZE - 1:,}")
