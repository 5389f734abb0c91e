"""What a model's forward is to be called with, where versions of transformers differ."""

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

from torch import nn
from transformers import Cache


def cache_argument(model: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """Return the keyword argument that hands a cache to a model's forward.

    It is called `cache` from transformers 5.24 on, and `past_key_values` before.
    """
    return {"cache" if "cache" in _arguments(type(model).forward) else "past_key_values": cache}


def takes_cache_position(model: nn.Module) -> bool:
    """Return whether a model takes positions twice, as in transformers 5.2."""
    return "cache_position" in _arguments(type(model).forward)


@lru_cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(forward).parameters)
