"""A model's config and the headers of its weights, and whether the two can be of one model.

A model that asks for more weights than the files hold is refused while it is built, before it takes memory.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from torch.nn.modules import module as torch_modules
from transformers import AutoConfig, PretrainedConfig

from streamlm.cache.folder import explained_folder, read_object, settings_files
from streamlm.cache.supported import rope_settings
from streamlm.limits import SPARE_ELEMENTS, SPARE_TENSORS, WEIGHT_INDEX_BYTES

_COUNTS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
_MAY_BE_NONE = ("num_key_value_heads", "head_dim", "max_position_embeddings")


def read_config(folder: Path | str) -> PretrainedConfig:
    """Return the config in a model folder, without its untrusted keys; no weights are read.

    Raises:
        ValueError: if there is none that transformers knows, or a number in it cannot be that of a model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    with settings_files(folder, ["config.json"]) as place, explained_folder(f"the config in {folder}"):
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        config.name_or_path = str(folder)
        _check_counts(config.get_text_config(decoder=True))
    return config


def _check_counts(text: PretrainedConfig) -> None:
    """Raise ValueError unless what is read here of a text config is a number that a model can have."""
    for key in (*_COUNTS, *_MAY_BE_NONE):
        value = vars(text).get(text.attribute_map.get(key, key), 1)
        if not (type(value) is int and value >= 1) and not (value is None and key in _MAY_BE_NONE):
            raise ValueError(f"{key} is {value!r:.60}, and a whole number of at least 1 was expected")
    for settings in rope_settings(text):
        for key in ("rope_theta", "factor", "partial_rotary_factor"):
            value = settings.get(key)
            if value is not None and not (type(value) in (int, float) and value > 0):
                raise ValueError(f"{key} is {value!r:.60}, and a number above 0 was expected")
    types = getattr(text, "layer_types", None)
    if types is not None and not (isinstance(types, list) and len(types) == text.num_hidden_layers):
        raise ValueError(f"layer_types are not a list of {text.num_hidden_layers}, one for each layer")


@dataclass(frozen=True)
class Stored:
    """The weights in the files of a model."""

    tensors: int
    elements: int  # of all tensors

    @contextmanager
    def bounding(self, n_models: int = 1) -> Iterator[None]:
        """Refuse a model that is built in this thread with more weights than are stored, as it is built.

        Tied weights count twice, and what a model makes itself, such as masks, is not stored.

        Args:
            n_models: how many times the block builds the model.
        """
        max_tensors = n_models * 4 * self.tensors + SPARE_TENSORS
        max_elements = n_models * 2 * self.elements + SPARE_ELEMENTS
        thread, tensors, elements = threading.get_ident(), 0, 0

        def count(_: Any, __: str, tensor: Tensor | None) -> None:
            nonlocal tensors, elements
            if tensor is None or not tensor.is_meta or threading.get_ident() != thread:
                return
            tensors, elements = tensors + 1, elements + tensor.numel()
            if tensors > max_tensors or elements > max_elements:
                raise ValueError(
                    f"its config asks for more weights than its files hold, {self.tensors:,} tensors of "
                    f"{self.elements:,} numbers"
                )

        with ExitStack() as undo:
            for register in (
                torch_modules.register_module_parameter_registration_hook,
                torch_modules.register_module_buffer_registration_hook,
            ):
                undo.callback(register(count).remove)
            yield


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a model folder, which an index may name.

    Raises:
        ValueError: if there are none; or the index is damaged, or names other than safetensors in the folder.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(f"{folder} has no weights: neither model.safetensors nor {index.name} is there")
    names = read_object(index, WEIGHT_INDEX_BYTES).get("weight_map")
    with explained_folder(str(index)):
        if not isinstance(names, dict) or not names:
            raise ValueError("it has no weight_map, an object of names of tensors and files")
        for name in set(map(str, names.values())):
            is_plain = name == Path(name).name and name.endswith(".safetensors")
            if not is_plain or not (folder / name).is_file():
                raise ValueError(f"it names {name!r:.60}, which is no safetensors file of this folder")
    return sorted({folder / name for name in names.values()})


def stored_weights(folder: Path) -> Stored:
    """Return what the headers of a model's weights say that is in them.

    Raises:
        ValueError: if there are no such files, a header is wrong, or two files hold the same tensor.
    """
    seen: set[str] = set()
    elements = 0
    for file in weight_files(folder):
        with explained_folder(f"the model in {folder}"), safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                if name in seen:
                    raise ValueError(f"{file.name} holds {name!r:.100} once more")
                seen.add(name)
                size = 1
                for length in opened.get_slice(name).get_shape():
                    size *= length
                elements += size
    return Stored(len(seen), elements)
