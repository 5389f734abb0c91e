"""A model at a full cache that decodes by one of the methods, and what one of its steps takes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import Method
from streamlm.measure.device import now
from streamlm.measure.scoring import CHUNK

CACHE_STEPS = 3  # untimed steps in which the cache's own share is measured


class Decoder:
    """A model at a full cache that reads its own greedy tokens.

    Args:
        model: prepared for the cache.
        cache: empty.
        ids: (1, capacity) what fills it.
    """

    cache_calls: tuple[str, ...] = ()  # methods of the cache that a step calls
    is_prepared = False  # whether its model is to be prepared for `SinkCache`
    recomputes = False  # whether every token costs a pass over the whole cache

    @classmethod
    def make(cls, model: PreTrainedModel, n_sink: int, ids: Tensor) -> "Decoder":
        """Return a decoder whose cache `ids` (1, capacity) fill, `n_sink` of them as sinks."""
        return cls(model, None, ids)

    def __init__(self, model: PreTrainedModel, cache: Cache | None, ids: Tensor) -> None:
        self.model, self.cache, self.capacity = model, cache, ids.shape[1]
        self.token = ids[:, -1:]
        self.fill(ids)

    def fill(self, ids: Tensor) -> None:
        """Read `ids` in blocks."""
        base = self.model.base_model
        chunk = self.cache.longest_pass(CHUNK) if isinstance(self.cache, SinkCache) else CHUNK
        for part in ids.split(chunk, dim=1):
            hidden = base(part, **cache_argument(base, self.cache)).last_hidden_state
        self.token = self.model.get_output_embeddings()(hidden[:, -1]).argmax(-1, keepdim=True)

    def make_ready(self) -> None:
        """Do what a step needs that is not part of it."""

    def step(self) -> None:
        """Decode one token."""
        logits = self.model(self.token, **cache_argument(self.model, self.cache)).logits  # (1, 1, V)
        self.token = logits[:, -1].argmax(-1, keepdim=True)


class Bounded(Decoder):
    """`streaming` and `window`: a `SinkCache` that has seen at least its capacity."""

    cache: SinkCache
    is_prepared = True
    cache_calls = ("_begin_pass", "update")

    @classmethod
    def make(cls, model: PreTrainedModel, n_sink: int, ids: Tensor) -> "Bounded":
        """See `Decoder`."""
        return cls(model, SinkCache(model.config, n_sink, ids.shape[1] - n_sink), ids)


class Dense(Decoder):
    """`dense`: a `DynamicCache`, cut back so that every step attends to `capacity` tokens."""

    cache: DynamicCache
    cache_calls = ("update",)

    @classmethod
    def make(cls, model: PreTrainedModel, n_sink: int, ids: Tensor) -> "Dense":
        """See `Decoder`."""
        return cls(model, DynamicCache(config=model.config), ids)

    def make_ready(self) -> None:
        """Forget all but capacity - 1 tokens."""
        more = self.cache.get_seq_length() - (self.capacity - 1)
        if more > 0:
            self.cache.crop(-more)  # newer transformers take no positive length


class Recompute(Decoder):
    """`recompute`: no cache; the last `capacity` tokens are computed from scratch for every token."""

    recomputes = True

    def fill(self, ids: Tensor) -> None:
        """Keep `ids`; nothing else is kept between two steps."""
        self.ids = ids

    def step(self) -> None:
        """See `Decoder`."""
        logits = self.model(self.ids, use_cache=False, logits_to_keep=1).logits
        self.ids = torch.cat((self.ids[:, 1:], logits[:, -1].argmax(-1, keepdim=True)), dim=1)


# By the name of the method; those that are timed have one.
DECODERS: dict[str, type[Decoder]] = {
    "dense": Dense,
    "window": Bounded,
    "recompute": Recompute,
    "streaming": Bounded,
}


def make_decoder(
    method: Method, n_sink: int, plain: PreTrainedModel, prepared: PreTrainedModel, ids: Tensor
) -> Decoder:
    """Return a decoder of `method` whose cache `ids` (1, capacity) fill.

    Raises:
        ValueError: if the method has no decoder, or no window is left beside the sinks.
    """
    found = DECODERS.get(method.name)
    if found is None:
        raise ValueError(f"{method.name} cannot be decoded; methods that can are {', '.join(DECODERS)}")
    return found.make(prepared if found.is_prepared else plain, n_sink, ids)


class Steps(Protocol):
    """What can be timed step by step."""

    model: PreTrainedModel

    def make_ready(self) -> None:
        """Do what a step needs that is not part of it."""

    def step(self) -> None:
        """Decode one token."""


def time_steps(decoder: Steps, count: int) -> list[float]:
    """Return the milliseconds of each of `count` steps, the device having finished each."""
    times = []
    for _ in range(count):
        decoder.make_ready()
        begin = now(decoder.model.device)
        decoder.step()
        times.append(1e3 * (now(decoder.model.device) - begin))
    return times


def measure_cache(decoder: Decoder) -> float | None:
    """Return the milliseconds of a step that are spent in the cache; None where there is none.

    They are measured in steps of their own: waiting for the device around every call would slow a timed one.
    """
    if decoder.cache is None:
        return None
    spent: list[float] = []
    with _timed_calls(decoder.cache, decoder.cache_calls, decoder.model.device) as calls:
        for _ in range(CACHE_STEPS):
            decoder.make_ready()
            calls.clear()
            decoder.step()
            spent.append(1e3 * sum(calls))
    return float(np.median(spent))


@contextmanager
def _timed_calls(target: Any, names: Sequence[str], device: torch.device) -> Iterator[list[float]]:
    """Collect the seconds of every call of the methods `names` of `target`."""
    calls: list[float] = []

    def timed(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = now(device)
            result = method(*args, **kwargs)
            calls.append(now(device) - begin)
            return result

        return call

    with ExitStack() as undo:
        for name in names:
            setattr(target, name, timed(getattr(target, name)))
            undo.callback(delattr, target, name)
        yield calls
