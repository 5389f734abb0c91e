"""A text as a cache reads it: the words of its tokens, and where the attention of each token goes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.observe import SeenBlock
from streamlm.cache.prepare import observing
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.measure.scoring import check_vocabulary, vocab_size

UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes that are no letter yet


@dataclass(frozen=True)
class WatchedToken:
    """The attention of one token of a stream, in the mean over layers and heads."""

    position: int  # in the text
    kept: np.ndarray  # (K,) positions of the tokens in the cache, ascending; its own is the last
    shares: np.ndarray  # (K,) of its attention, on each of them; the rest is on no token (learned sinks)

    def totals(self, cfg: StreamConfig) -> tuple[float, float, float]:
        """Return its attention on all sinks, on the window and on no token; they sum to 1, up to rounding."""
        is_sink = self.kept < cfg.n_sink
        sinks, window = float(self.shares[is_sink].sum()), float(self.shares[~is_sink].sum())
        return sinks, window, max(0.0, 1 - sinks - window)


def kept_tokens(position: int, cfg: StreamConfig) -> np.ndarray:
    """Return the positions of the tokens that a cache holds once it has read one, (K,) ascending."""
    window = max(0, position + 1 - cfg.window_size)
    sinks = np.arange(min(cfg.n_sink, window))
    return np.concatenate((sinks, np.arange(window, position + 1)))


def watch(
    model: PreTrainedModel, ids: np.ndarray, cfg: StreamConfig, layer: int | None = None
) -> Iterator[WatchedToken]:
    """Feed a text token by token, and yield where the attention of each goes.

    Args:
        model: prepared for `SinkCache`.
        ids: (N,) token ids.
        cfg: what the cache keeps; a layer with a window of its own may keep less.
        layer: the one that is looked at; None takes the mean of all that attend.

    Raises:
        ValueError: if a token is outside the vocabulary, or no such layer attends.
    """
    check_vocabulary(ids, vocab_size(model))
    cache = SinkCache(model.config, cfg.n_sink, cfg.window_size)
    for token in ids.tolist():
        yield watch_token(model, cache, token, layer)


@torch.inference_mode()
def watch_token(
    model: PreTrainedModel, cache: SinkCache, token: int, layer: int | None = None
) -> WatchedToken:
    """Feed one token to a cache, and return where its attention goes.

    Args:
        model: prepared for `SinkCache`.
        cache: of one row, which reads the token.
        token: its id.
        layer: the one that is looked at; None takes the mean of all that attend.

    Raises:
        ValueError: if no such layer attends, or the cache has codes of a quantised window on a GPU.
    """
    base, position = model.base_model, cache.get_seq_length()
    with observing(observer := _Shares(position)):
        base(torch.tensor([[token]], device=model.device), **cache_argument(base, cache))
    of_layers = observer.of_layers
    if layer is not None and layer not in of_layers:
        raise ValueError(f"layer {layer} does not attend; those that do are {_numbers(of_layers)}")
    shares = np.mean([*of_layers.values()] if layer is None else [of_layers[layer]], axis=0)
    # A layer with a window of its own may see further back than the window that is asked.
    kept = np.union1d(kept_tokens(position, cache.cfg), np.flatnonzero(shares))
    return WatchedToken(position, kept, shares[kept])


class _Shares:
    """Keeps how the attention of one token is spread over a text, (N,) for every layer."""

    def __init__(self, position: int) -> None:
        self.position, self.of_layers = position, dict[int, np.ndarray]()

    def __call__(self, layer: int, seen: SeenBlock) -> None:
        shares = torch.zeros(self.position + 1, dtype=torch.float64)
        shares.index_add_(0, seen.keys.cpu(), seen.weights[0, :, 0].double().mean(0).cpu())
        self.of_layers[layer] = shares.numpy()


def _numbers(layers: Collection[int]) -> str:
    first, last = min(layers), max(layers)
    return f"{first} to {last}" if len(layers) == last - first + 1 else ", ".join(map(str, sorted(layers)))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to a text; a letter whose bytes are in several tokens is the last one's."""
    # As they are: a clean-up would take away spaces before commas, and what follows would not fit.
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    texts, before, start = [], 0, 0  # tokens from `start` on are not written yet, those from `before` on just
    for i in range(len(ids)):
        known, longer = decode(ids[before:start]), decode(ids[before : i + 1])
        if longer.endswith(UNFINISHED) and i + 1 < len(ids):
            texts.append("")
            continue
        texts.append(longer.removeprefix(known))
        before, start = start, i + 1
    return texts
