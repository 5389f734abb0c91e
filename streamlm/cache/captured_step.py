"""One decoding step of a full cache, captured once and replayed for every token."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.plan import ChunkPlan, DecodePlan, LayerKind, PassPlan, slot_of
from streamlm.cache.sink_cache import SinkCache

Step = Callable[[], Tensor]


def compiled(run: Step) -> Step:
    """Return what `run` does, compiled: traced to plain operators, which torch's inductor fuses.

    A graph without Python in it takes a fifth of the time that compiling the model's own code takes, and no
    later token compiles anything.
    """
    run()  # what is set up lazily must not be traced
    graph = make_fx(lambda: run())()  # a bound method would count as having an argument
    step: Step = torch.compile(graph, fullgraph=True, dynamic=False)
    step()  # compiles
    return step


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

    like: Any = None  # what the model returned for an earlier token, in `compile_steps`

    @torch.inference_mode(False)  # whoever calls it: tensors born in inference mode stay in it
    def __init__(
        self, model: PreTrainedModel, cache: SinkCache, capture: Callable[[Step], Step] = cuda_graph
    ) -> None:
        self.model, self.cache = model, cache
        self.dtype = torch.promote_types(model.dtype, torch.float32)  # of rotations
        self.addresses = self._check()
        stores, begin = cache._stores, time.perf_counter()
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
        self.capture_sec = time.perf_counter() - begin

    def __deepcopy__(self, _: object) -> None:
        """Return None: a copy of the cache lies elsewhere, and gets a step of its own."""

    @staticmethod
    def takes(cache: SinkCache) -> bool:
        """Return whether a step of this cache can be captured, or replayed, as it stands."""
        is_full, is_idle = (
            cache._state.n_seen >= cache.capacity,
            cache._pass is None and not cache._captured_pass,
        )
        return is_full and is_idle and cache._state.padding.pads is None and not cache._kept_states

    def fits(self, tokens: Tensor) -> bool:
        """Return whether tokens (B, 1) can be fed, the cache being as it was."""
        return (
            self.takes(self.cache) and tokens.shape == self.tokens.shape and self._check() == self.addresses
        )

    def _check(self) -> list[int]:
        """Return where the cache lies, if a step of it can be captured or replayed."""
        state, capacity = self.cache._state, self.cache.capacity
        if self.cache._kept_states:
            raise ValueError("a step cannot be captured where layers have a state of fixed size")
        if not self.takes(self.cache):
            raise ValueError(
                "a step can be captured and replayed while the cache is full, and without left pads; "
                f"{state.n_seen} tokens were seen of {capacity}, pads: {state.padding.pads}"
            )
        return [store.keys.data_ptr() for store in self.cache._stores]

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
