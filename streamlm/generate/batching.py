"""How many texts are written together."""

from collections.abc import Collection

from transformers import PreTrainedModel

from streamlm.cache.footprint import describe_layout, sink_cache_bytes
from streamlm.cache.ring import parse_kv_dtype
from streamlm.cache.sink_cache import SinkCache
from streamlm.limits import BATCH_ROWS, BATCH_SHARE, BATCH_TOKENS
from streamlm.measure.memory import available_bytes


def rows_that_fit(model: PreTrainedModel, cache: SinkCache, lengths: Collection[int]) -> int:
    """Return how many texts are written together: as many as a part of the free memory holds.

    One, where lengths differ and layers have a state of fixed size, which would read left pads as tokens.

    Args:
        model: that writes.
        cache: of one row, empty.
        lengths: of the prompts, in tokens.
    """
    layout, available = describe_layout(model.config), available_bytes(model.device)
    if layout.state_layers and len({*lengths}) > 1:
        return 1
    if layout.is_latent or available is None:
        return max(1, BATCH_TOKENS // cache.capacity)
    kv_dtype = parse_kv_dtype(cache.settings["kv_dtype"])
    of_row = sink_cache_bytes(layout, cache.cfg, model.dtype, kv_dtype)
    return max(1, min(BATCH_ROWS, int(BATCH_SHARE * available) // of_row))
