"""A cache in a file: what it holds, and whose stream it is."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.supported import rope_settings
from streamlm.cache.tensor_file import bytes_of, read_about, read_tensors, write_tensors
from streamlm.characters import without_steering
from streamlm.input_files import check_regular
from streamlm.limits import SAVED_CACHE_BYTES

FORMAT = "streamlm cache 1"
FAULTS = (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)  # of content that is forged
_OWN = "cache."  # begins the names of the tensors of the cache


@dataclass(frozen=True)
class SavedCache:
    """What a file holds, read and found whole."""

    path: Path
    settings: dict[str, Any]  # arguments of `SinkCache`
    state: dict[str, Tensor]  # see `SinkCache.state_dict`
    texts: dict[str, str] = field(default_factory=dict)  # what else was saved with it
    tensors: dict[str, Tensor] = field(default_factory=dict)  # likewise

    def on_devices_of(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return the state, every layer on the device where that of the model is."""
        devices = {
            str(module.layer_idx): next(module.parameters()).device
            for module in base_of(model).modules()
            if hasattr(module, "layer_idx")
        }
        return {
            name: tensor.to(devices.get(name.partition(".")[0], model.device))
            for name, tensor in self.state.items()
        }

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Name the file in what the block raises of its content."""
        with _explained(self.path):
            yield


def write_cache(
    path: Path | str,
    settings: Mapping[str, Any],
    state: Mapping[str, Tensor],
    base: PreTrainedModel,
    *,
    model_sha256: str | None = None,
    texts: Mapping[str, str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a cache, and what else is to be kept with it, whole or not at all.

    Args:
        path: of the file.
        settings: arguments of the `SinkCache`.
        state: its `state_dict`.
        base: the base model whose stream it is.
        model_sha256: its `model_hash`, if it is known and the weights stayed as they were.
        texts: to be kept with it, by name.
        tensors: likewise.
    """
    about = {
        **(texts or {}),
        "format": FORMAT,
        "settings": json.dumps(settings),
        "model": model_sha256 or model_hash(base),
    }
    own = {_OWN + name: tensor for name, tensor in state.items()}
    write_tensors(path, about, {**own, **(tensors or {})})


def read_cache(path: Path | str, model: PreTrainedModel, *, model_sha256: str | None = None) -> SavedCache:
    """Return what `write_cache` wrote; arguments as there.

    Raises:
        ValueError: if the file is damaged or no saved cache, or the cache is of another model.
    """
    path = Path(path)
    with _explained(path):
        path.stat()
        check_regular(path, SAVED_CACHE_BYTES)
        about = read_about(path)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{without_steering(str(path))} holds no cache that this streamlm can read: its format is "
            f"{about.get('format', 'none')!r:.60}, and {FORMAT!r} was expected"
        )
    if about.get("model") != (model_sha256 or model_hash(model)):
        raise ValueError(
            f"{without_steering(str(path))} was saved with another model: other weights, another number type "
            "or other rotary settings; load the one that it was saved with"
        )
    with _explained(path):
        tensors = read_tensors(path)
        settings = json.loads(about["settings"])
    state = {name.removeprefix(_OWN): x for name, x in tensors.items() if name.startswith(_OWN)}
    others = {name: x for name, x in tensors.items() if not name.startswith(_OWN)}
    return SavedCache(path, settings, state, about, others)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    shown = without_steering(str(path))
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"no such file: {shown}; correct the path") from error
    except (SafetensorError, OSError, ValueError, *FAULTS) as error:
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"the saved cache {shown} is damaged, or is no saved cache: {without_steering(reason)}".replace(
                "\n", " "
            )
        ) from error


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its head, and without what peft puts around it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    base: PreTrainedModel = inner.base_model
    return base


def model_hash(model: PreTrainedModel) -> str:
    """Return the SHA-256 of what decides the states that a model computes: weights and rotary settings.

    Without its head, which no cache depends on. The weights are read in threads.
    """
    base = base_of(model)
    about = {
        "type": base.config.model_type,
        "rope": rope_settings(base.config.get_text_config(decoder=True)),
    }
    with ThreadPoolExecutor() as pool:
        weights = list(pool.map(_weight_hash, sorted(base.state_dict().items())))
    return hashlib.sha256(json.dumps([about, weights], sort_keys=True, default=str).encode()).hexdigest()


def _weight_hash(item: tuple[str, Tensor]) -> list[str]:
    name, weight = item
    return [name, str(weight.dtype), str(tuple(weight.shape)), hashlib.sha256(bytes_of(weight)).hexdigest()]
