"""The state of a cache, by name: all that a stream left in it, taken out and put back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamlm.cache.kept_state import load_states, state_tensors
from streamlm.cache.layers import SinkLayer
from streamlm.cache.plan import Padding
from streamlm.cache.store import Store, StreamState
from streamlm.limits import TOKENS

COUNTS, PADS = "counts", "pads"  # tokens seen and shift, (2,); left pads of the rows, (B,)


def collect_state(
    stream: StreamState, sink_layers: Mapping[int, SinkLayer], kept_layers: Mapping[int, Any]
) -> dict[str, Tensor]:
    """Return copies of the state of a cache; at the beginning of a stream, of its counts alone.

    Args:
        stream: where it stands.
        sink_layers: those that attend, by index.
        kept_layers: those with a state of fixed size, by index.
    """
    if stream.n_seen == 0:
        return {COUNTS: torch.zeros(2, dtype=torch.int64)}
    state = {COUNTS: torch.tensor([stream.n_seen, stream.shift])}
    if stream.padding.pads is not None:
        state[PADS] = stream.padding.pads.clone()
    held = {i: layer.tensors() for i, layer in sink_layers.items() if layer.is_initialized}
    held |= {i: state_tensors(layer) for i, layer in kept_layers.items()}
    for i, tensors in held.items():
        state |= {f"{i}.{name}": tensor.clone() for name, tensor in tensors.items()}
    return state


def put_state(
    state: Mapping[str, Tensor],
    stream: StreamState,
    stores: Sequence[Store],
    sink_layers: Mapping[int, SinkLayer],
    kept_layers: Mapping[int, Any],
) -> None:
    """Put what `collect_state` returned into a new cache.

    Args:
        state: tensors by name, on the devices where the layers are to be.
        stream: of the cache.
        stores: of the cache.
        sink_layers: of the cache.
        kept_layers: of the cache.

    Raises:
        ValueError: if the state is not that of such a cache, or the cache is in use.
    """
    n_seen, shift, pads = _read_counts(state)
    by_layer = _by_layer(state, sink_layers.keys() | kept_layers.keys())
    if stream.n_seen or any(layer.is_initialized for layer in sink_layers.values()):
        raise ValueError("a state can be loaded into a new SinkCache only; make one")
    if n_seen == 0 and not any(by_layer.values()):
        return
    for i, layer in sink_layers.items():
        layer.load(by_layer[i])
    for i, kept in kept_layers.items():
        load_states(kept, i, by_layer[i])
    if pads is not None and any(len(store.keys[0]) != len(pads) for store in stores):
        raise ValueError("the state has left pads of another number of rows")
    stream.n_seen, stream.shift, stream.padding = n_seen, shift, Padding.of(pads)


def _read_counts(state: Mapping[str, Tensor]) -> tuple[int, int, Tensor | None]:
    """Return tokens seen, shift and left pads, if they can be those of a stream."""
    counts, pads = state.get(COUNTS), state.get(PADS)
    if counts is None or (counts.shape, counts.dtype) != ((2,), torch.int64):
        raise ValueError("the state does not say where its stream stands")
    n_seen, shift = counts.tolist()
    if not 0 <= shift <= n_seen <= TOKENS or not (pads is None or _are_pads(pads, n_seen)):
        raise ValueError("the state is of no stream: its counts contradict each other")
    return n_seen, shift, pads


def _are_pads(pads: Tensor, n_seen: int) -> bool:
    is_whole = pads.ndim == 1 and pads.dtype == torch.int64 and len(pads) > 0
    return is_whole and bool((pads >= 0).all() and (pads <= n_seen).all() and pads.max() > 0)


def _by_layer(state: Mapping[str, Tensor], layers: set[int]) -> dict[int, dict[str, Tensor]]:
    """Return the tensors of each layer, by index and name."""
    found: dict[int, dict[str, Tensor]] = {i: {} for i in layers}
    for name in state.keys() - {COUNTS, PADS}:
        layer, _, part = name.partition(".")
        if not layer.isdecimal() or int(layer) not in found:
            raise ValueError(f"the state holds {name}, which this SinkCache does not have")
        found[int(layer)][part] = state[name]
    return found
