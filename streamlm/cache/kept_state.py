"""Layers with a state of fixed size instead of attention: convolutions, linear attention.

Their state is the model's own, and transformers' own layers of a cache keep it (from 5.24 on).
"""

from collections.abc import Container
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
def load_state(layer: Any, name: str, tensor: Tensor) -> None:
    """Give a new layer what `state_tensors` returned under this name."""
    field, index = name.rsplit(".", 1)
    layer.lazy_initialization(**{field: tensor}, state_idx=int(index))
    getattr(layer, field)[int(index)].copy_(tensor)
    layer.has_previous_state[int(index)] = True
