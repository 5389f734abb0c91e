"""What a model's config says of its layers, and which of them a `SinkCache` supports."""

from typing import Any

import transformers
from transformers import Cache, PretrainedConfig

from streamlm.config import StreamConfig

STATEFUL = {"conv", "linear_attention"}  # types of layers with a state of fixed size
LENGTH_INDEPENDENT = ("default", "linear", "llama3", "yarn", "longrope", "proportional")
SUPPORTED = (
    "supported are models with rotary positions of fixed frequencies "
    f"(rope types {', '.join(LENGTH_INDEPENDENT)}) and full or sliding attention, "
    "such as Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi-3, gpt-oss and GPT-NeoX / Pythia"
)


def layer_geometry(cfg: StreamConfig, window: int | None) -> StreamConfig:
    """Return what a layer keeps when `cfg` is asked.

    Args:
        cfg: what was asked.
        window: the sliding window of the layer's own, in tokens, or None.
    """
    if window is None or cfg.capacity < window:
        return cfg
    return StreamConfig(n_sink=0, window_size=window)


def layer_windows(config: PretrainedConfig) -> dict[int, int | None]:
    """Return the sliding window of every attending layer's own, in tokens, or None for full attention.

    Returns:
        by the index of the layer; one with a state of fixed size is not there.

    Raises:
        ValueError: if a layer is of another type, or the positions are not rotary with fixed frequencies.
    """
    config = config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    default = "full_attention" if window is None else "sliding_attention"
    types = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    unknown = set(types) - {"full_attention", "sliding_attention", *STATEFUL}
    if unknown:
        raise ValueError(_unknown(config, f"layers of type {', '.join(sorted(unknown))}"))
    if "sliding_attention" in types and not (type(window) is int and window >= 1):
        raise ValueError(f"sliding_window is {window!r:.60}, and its layers need a number of at least 1")
    if STATEFUL.issuperset(types):
        raise ValueError(
            f"every layer of {config.model_type} has a state of fixed size and none attends, so there is "
            "nothing that a SinkCache would bound"
        )
    if STATEFUL & set(types) and not hasattr(Cache, "get_recurrent_state"):
        raise ValueError(
            f"transformers {transformers.__version__} keeps a state of fixed size, such as layers of "
            f"{config.model_type} have, in caches of its own only; 5.24.0 lets a SinkCache keep most of them"
        )
    rope_types = {rope.get("rope_type", "default") for rope in rope_settings(config)}
    if not rope_types or getattr(config, "alibi", False):
        raise ValueError(_unknown(config, "positions, which are not rotary,"))
    if other := rope_types - {*LENGTH_INDEPENDENT}:
        raise ValueError(_unknown(config, f"rope type {', '.join(sorted(map(repr, other)))}"))
    return {
        i: window if layer_type == "sliding_attention" else None
        for i, layer_type in enumerate(types)
        if layer_type not in STATEFUL
    }


def _unknown(config: PretrainedConfig, what: str) -> str:
    return f"SinkCache does not know the {what} of {config.model_type}; {SUPPORTED}"


def rope_settings(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Return the settings of every rotary embedding of a text config: one, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope and all(isinstance(value, dict) for value in rope.values()):
        return list(rope.values())
    return [rope] if rope else []


def rope_limit(config: PretrainedConfig) -> int | None:
    """Return the number of positions after which the model computes otherwise, or None if it never does.

    longrope changes its frequencies there; Ministral 3 begins to scale its queries by their position.
    """
    limits = [
        rope["original_max_position_embeddings"]
        for rope in rope_settings(config.get_text_config(decoder=True))
        if (rope.get("rope_type") == "longrope" and rope["short_factor"] != rope["long_factor"])
        or rope.get("llama_4_scaling_beta")
    ]
    return min(limits, default=None)
