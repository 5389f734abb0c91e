"""One decoding step of a full cache, captured once and replayed for every token."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.plan import ChunkPlan, DecodePlan, LayerKind, PassPlan, slot_of
from streamlm.cache.sink_cache import SinkCache

Step = Callable[[], Tensor]


def cuda_graph(run: Step) -> Step:
    """Return a replay of what `run` does on its GPU; it may read and write fixed addresses only."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # lazy set-up of libraries must not be captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


class CapturedStep:
    """A decoding step without the time that Python takes to launch it.

    All that changes from token to token lies at fixed addresses: ring and sinks in the cache; the token, its
    position and its slots here. Before a replay the sinks are rotated, and position and slots are set; the
    rest is the graph.

    Args:
        model: prepared for `SinkCache`.
        cache: a full one, in use with `model`, without left pads.
        capture: makes a replay of a step; the default needs a GPU.

    Raises:
        ValueError: if the cache is not full, its rows differ, or layers have a state of fixed size.
    """

    @torch.inference_mode(False)  # whoever calls it: tensors born in inference mode stay in it
    def __init__(
        self, model: PreTrainedModel, cache: SinkCache, capture: Callable[[Step], Step] = cuda_graph
    ) -> None:
        self.model, self.cache = model, cache
        self.dtype = torch.promote_types(model.dtype, torch.float32)  # of rotations
        self._check()
        self.addresses, stores = self._addresses(), cache._stores
        self.tokens = torch.zeros(stores[0].keys.shape[1], 1, dtype=torch.int64, device=model.device)
        self.position = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        self.slots = {
            (store.cfg, store.device): torch.zeros(1, dtype=torch.int64, device=store.device)
            for store in stores
        }
        plans: dict[LayerKind, DecodePlan | ChunkPlan] = {
            (cfg, rotary, device): DecodePlan(slot, n_held=cfg.capacity)
            for (cfg, device), slot in self.slots.items()
            for rotary in model.base_model.rotaries
        }
        cache._captured_pass = replace(self._advance(), position=self.position, planned=plans)
        try:
            self.replay = capture(self._run)
        finally:
            cache._captured_pass = None

    @staticmethod
    def takes(cache: SinkCache) -> bool:
        """Return whether a step of this cache can be captured, or replayed, as it stands."""
        if cache._kept_states or cache._pass is not None or cache._captured_pass is not None:
            return False
        return cache._state.n_seen >= cache.capacity and cache._state.padding.pads is None

    def fits(self, tokens: Tensor) -> bool:
        """Return whether these are tokens (B, 1) of as many rows, and the cache lies where it was."""
        return tokens.shape == self.tokens.shape and self._addresses() == self.addresses

    def _addresses(self) -> list[int]:
        return [store.keys.data_ptr() for store in self.cache._stores]

    def _check(self) -> None:
        """Raise ValueError unless a step of the cache can be captured or replayed."""
        state, capacity = self.cache._state, self.cache.capacity
        if self.cache._kept_states:
            raise ValueError("a step cannot be captured where layers have a state of fixed size")
        if not self.takes(self.cache):
            raise ValueError(
                "a step can be captured and replayed while the cache is full, and without left pads; "
                f"{state.n_seen} tokens were seen of {capacity}, pads: {state.padding.pads}"
            )

    def _advance(self) -> PassPlan:
        """Rotate the sinks for the next token, and set its position and its slots."""
        plan = self.cache._plan_pass(1, self.model.base_model.rotaries, self.dtype, None)
        self.position.fill_(plan.n_past - plan.shift)
        for (cfg, _), slot in self.slots.items():
            slot.fill_(slot_of(plan.n_past, cfg))
        return plan

    @torch.no_grad()
    def _run(self) -> Tensor:
        """Return the logits of a rehearsal: the token is not counted."""
        logits: Tensor = self.model(self.tokens, **cache_argument(self.model, self.cache)).logits
        self.cache._state.n_seen -= 1
        return logits

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Feed one token of each row, (B, 1); return logits (B, 1, V), which the next call overwrites.

        Raises:
            ValueError: if the number of rows changed, or the cache was reset.
        """
        self._check()
        if not self.fits(tokens):
            raise ValueError(
                f"the step was captured for tokens {tuple(self.tokens.shape)} and the cache as it was; "
                f"it was given {tuple(tokens.shape)}: capture another one"
            )
        self._advance()
        self.tokens.copy_(tokens)
        logits = self.replay()
        self.cache._state.n_seen += 1
        return logits
