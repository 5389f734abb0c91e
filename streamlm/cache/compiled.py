"""A model whose decoding steps are compiled, once its cache is full."""

import copy
import time
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from streamlm.cache.captured_step import CapturedStep, Step
from streamlm.cache.prepare import is_observed
from streamlm.cache.sink_cache import SinkCache

OLDEST_TORCH = "2.13"  # with 2.6 to 2.12, compiling fails or does not end

# Arguments beside the cache that change nothing in what one token a row is given.
INERT = {"input_ids", "attention_mask", "position_ids", "cache_position", "logits_to_keep"}


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


class CompiledStep(CapturedStep):
    """A compiled step that returns what the model does.

    Args:
        model: see `CapturedStep`.
        cache: likewise.
        out: what the model returned for an earlier token.
    """

    def __init__(self, model: PreTrainedModel, cache: SinkCache, out: Any) -> None:
        super().__init__(model, cache, compiled)
        self.out = out

    def answer(self, tokens: Tensor) -> Any:
        """Feed one token of each row, (B, 1); return the output of the model."""
        out = copy.copy(self.out)
        out.logits = self(tokens)
        return out

    def __deepcopy__(self, _: object) -> None:
        """Return None: a copy of the cache lies elsewhere, and gets a step of its own."""


def compile_steps(model: PreTrainedModel) -> None:
    """Let `model` take single tokens through a compiled step, once its cache is full.

    Each cache gets a step of its own after the first such token. That takes half a minute for a new kind of
    model or size of cache, and seconds for one that was compiled on this machine before: torch keeps the code
    on disk. `SinkCache.reset` keeps the step. All else runs as it did: longer passes; a cache that is not
    full, has left pads or layers with a state of fixed size; calls with gradients, or for more than logits;
    and what is shown by `observing`.
    To ask for it twice changes nothing.

    Args:
        model: prepared for `SinkCache`.

    Raises:
        ValueError: if torch is too old, finds no C++ compiler, or cannot compile with these weights.
    """
    if torch.__version__ < OLDEST_TORCH:
        raise ValueError(
            f"compiled steps need torch {OLDEST_TORCH} or newer, and this is {torch.__version__}; "
            "upgrade it, or do not compile"
        )
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("the weights were made in inference mode; load the model outside of it to compile")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "no C++ compiler was found to compile with; install g++, or do not compile"
        ) from error
    plain = model.forward
    if getattr(plain, "compiles_steps", False):
        return

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        cache = next((x for x in kwargs.values() if isinstance(x, SinkCache)), None)
        tokens = args[0] if args else kwargs.get("input_ids")
        if cache is None or tokens is None or not _is_step(tokens, cache, args, kwargs):
            return plain(*args, **kwargs)
        step = cache._compiled_step
        if step is not None and step.fits(tokens):
            return step.answer(tokens)
        out = plain(*args, **kwargs)
        if all(name == "logits" or value is cache for name, value in out.items()):
            begin = time.perf_counter()
            cache._compiled_step = CompiledStep(model, cache, copy.copy(out))
            cache._compile_sec += time.perf_counter() - begin
        return out

    forward.compiles_steps = True  # type: ignore[attr-defined]
    model.forward = forward


def _is_step(tokens: Tensor, cache: SinkCache, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call feeds one token a row to a full cache, and asks for logits alone."""
    asked = {name: x for name, x in kwargs.items() if name not in INERT and x is not cache and x is not None}
    return (
        tokens.shape[1:] == (1,)
        and len(args) <= 1
        and all(name in ("use_cache", "return_dict") and x for name, x in asked.items())
        and not torch.is_grad_enabled()
        and not is_observed()
        and CapturedStep.takes(cache)
    )
