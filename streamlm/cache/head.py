"""The head of a model: logits of hidden states, finished as the model itself finishes them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Head = Callable[[Tensor], Tensor]


class _Given:
    """What a base returns, with nothing but its last hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        if index:
            raise IndexError(index)
        return self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        """Return None for all that a base may return besides."""


class _Base(nn.Module):
    """Stands where the base of a model is called, and returns what it is given as embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Given:
        """Return hidden states (B, T, H) as if they had been computed."""
        return _Given(inputs_embeds)


def head_of(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Head:
    """Return a function from hidden states (T, H) to logits (T, V): the model's own forward after its base.

    What a model does to its logits is in it, such as scales and soft caps.

    Args:
        model: of the hidden states.
        dtype: that it is computed in, on a copy of its weights; None takes the model's own.
    """
    stand_in = copy.copy(model)  # the same weights
    stand_in.__dict__.pop("forward", None)  # of accelerate or `compile_steps`: it would call the model itself
    others = {name: module for name, module in model._modules.items() if name != model.base_model_prefix}
    if dtype not in (None, model.dtype):
        others = {name: copy.deepcopy(module).to(dtype) for name, module in others.items()}
    stand_in._modules = {**others, model.base_model_prefix: _Base()}

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = stand_in(inputs_embeds=hidden[None].to(dtype or hidden.dtype)).logits[0]
        return logits

    return head
