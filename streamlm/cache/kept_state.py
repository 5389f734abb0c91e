"""Layers with a state of fixed size instead of attention: convolutions, linear attention.

Their state is the model's own, and transformers' own layers of a cache keep it (from 5.24 on).
"""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

FIELDS = ("conv_states", "recurrent_states")


def kept_states(config: PretrainedConfig, attending: Container[int]) -> dict[int, Any]:
    """Return a layer of a cache for each layer of a model that does not attend, by its index.

    Args:
        config: of the model.
        attending: indices of the layers that do.
    """
    count = config.get_text_config(decoder=True).num_hidden_layers
    others = [i for i in range(count) if i not in attending]
    layers = DynamicCache(config=config).layers if others else []
    return {i: layers[i] for i in others}


def state_tensors(layer: Any) -> dict[str, Tensor]:
    """Return all that such a layer holds, by name; of a layer that attends, nothing."""
    return {
        f"{field}.{i}": tensor
        for field in FIELDS
        for i, tensor in getattr(layer, field, {}).items()
        if tensor is not None
    }


@torch.inference_mode(False)  # tensors born in inference mode could not be written outside it
def load_states(layer: Any, index: int, stored: Mapping[str, Tensor]) -> None:
    """Give a new layer of a model what `state_tensors` returned.

    Raises:
        ValueError: if that is nothing, or nothing that such a layer keeps.
    """
    if not stored:
        raise ValueError(f"the state has no layer {index}; it was made for another model")
    for name in sorted(stored):
        field, _, number = name.rpartition(".")
        if field not in FIELDS or not number.isdecimal():
            raise ValueError(f"the state holds {index}.{name}, which this SinkCache does not have")
        layer.lazy_initialization(**{field: stored[name]}, state_idx=int(number))
        getattr(layer, field)[int(number)].copy_(stored[name])
        layer.has_previous_state[int(number)] = True
