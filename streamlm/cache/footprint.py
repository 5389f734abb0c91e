"""How a model is laid out, and the bytes that its keys and values take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from streamlm.cache.supported import STATEFUL, layer_geometry, layer_windows, rope_settings
from streamlm.config import StreamConfig
from streamlm.records.types import Record

SCALE_BYTES = 4  # of an int8 key or value: a float32 for each token and head


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What decides the size of a cache, and how it rotates."""

    model_type: str
    layers: int
    heads: int  # of queries
    kv_heads: int
    head_size: int
    rotary: str  # its type
    rotary_size: int  # features of a head that rotate
    rotary_theta: float | None
    trained_length: int | None  # positions
    vocabulary: int
    dtype: str  # of the weights as they are stored
    sliding_windows: tuple[int, ...]  # one for each layer that has its own
    state_layers: int  # of `layers`, with a state of fixed size instead of keys and values
    refused: str | None  # why SinkCache cannot serve it
    is_latent: bool  # whether keys and values come from latents, whose size is not known here


def describe_layout(config: PretrainedConfig) -> Layout:
    """Return the layout that a model's config gives.

    Raises:
        ValueError: if it is of a kind without attention heads.
    """
    text = config.get_text_config(decoder=True)
    if not getattr(text, "num_attention_heads", None):
        raise ValueError(f"a {text.model_type} has no attention heads, and so no keys and values to hold")
    rope: dict[str, Any] = next(iter(rope_settings(text)), {})  # of several, the first
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    try:
        windows, refused = layer_windows(config), None
    except ValueError as error:
        windows, refused = {}, str(error)
    return Layout(
        model_type=text.model_type,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_size=head_size,
        rotary=rope.get("rope_type", "none"),
        rotary_size=int(head_size * rope.get("partial_rotary_factor", 1.0)) if rope else 0,
        rotary_theta=rope.get("rope_theta"),
        trained_length=getattr(text, "max_position_embeddings", None),
        vocabulary=text.vocab_size,
        dtype=str(text.dtype or torch.float32).removeprefix("torch."),
        sliding_windows=tuple(window for window in windows.values() if window is not None),
        state_layers=sum(kind in STATEFUL for kind in getattr(text, "layer_types", None) or ()),
        refused=refused,
        is_latent=bool(getattr(text, "kv_lora_rank", None)),
    )


def dense_bytes(layout: Layout, n_tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes of all keys and values of so many tokens; sliding layers hold their window only."""
    full = layout.layers - layout.state_layers - len(layout.sliding_windows)
    held = full * n_tokens + sum(min(n_tokens, window) for window in layout.sliding_windows)
    return held * 2 * layout.kv_heads * layout.head_size * dtype.itemsize


def sink_cache_bytes(
    layout: Layout, cfg: StreamConfig, dtype: torch.dtype, kv_dtype: torch.dtype | None
) -> int:
    """Return the bytes of a `SinkCache`: slots of keys and values, and the sink keys as written.

    A state of fixed size, which a layer may have instead, is not in it: dense caches have the same.

    Args:
        layout: of the model.
        cfg: what is asked.
        dtype: of the model.
        kv_dtype: of the windows, if quantised.
    """
    sizes = [layer_geometry(cfg, window) for window in layout.sliding_windows]
    sizes += [cfg] * (layout.layers - layout.state_layers - len(sizes))
    features = layout.head_size * (kv_dtype or dtype).itemsize
    slot = 2 * (features + (SCALE_BYTES if kv_dtype == torch.int8 else 0))
    sink = 3 * layout.head_size * dtype.itemsize
    return layout.kv_heads * sum(size.window_size * slot + size.n_sink * sink for size in sizes)


def describe_costs(
    layout: Layout,
    sizes: Sequence[StreamConfig],
    contexts: Sequence[int],
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None,
) -> Record:
    """Return what caches of these sizes take, and what they save against dense at these context lengths."""
    if layout.is_latent:
        raise ValueError(
            f"what latent attention such as that of {layout.model_type} holds is not computed; make a "
            "SinkCache, feed a token, and read its nbytes"
        )
    dense = {length: dense_bytes(layout, length, dtype) for length in contexts}
    rows = []
    for cfg in sizes:
        held = sink_cache_bytes(layout, cfg, dtype, kv_dtype)
        against = [
            {"context_tokens": length, "dense_over_this": size / held} for length, size in dense.items()
        ]
        rows.append({**asdict(cfg), "capacity": cfg.capacity, "kv_bytes": held, "against_dense": against})
    return {
        "kv_bytes_per_token": dense_bytes(layout, 1, dtype),
        "dense": [{"context_tokens": length, "kv_bytes": size} for length, size in dense.items()],
        "caches": rows,
    }
