"""Prepare a model for `SinkCache`: its attention becomes ours, its positions those in the cache."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from streamlm.cache.attention import attend
from streamlm.cache.forward import cache_argument, takes_cache_position
from streamlm.cache.head import head_of
from streamlm.cache.observe import Observer, blocks_of
from streamlm.cache.plan import DecodePlan
from streamlm.cache.probe import (
    CHECKED_TOKENS,
    Unsupported,
    ask_layers,
    check_attention,
    explained,
    is_close,
    probe_ids,
    refuse_dropout,
)
from streamlm.cache.rope import Rotary
from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.supported import layer_windows

ATTENTION_NAME = "streamlm"


class _Active(threading.local):
    """The cache whose pass this thread is in: two threads may use one model, each with a cache of its own."""

    cache: SinkCache | None = None
    observer: Observer | None = None


_active = _Active()


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    *,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention of a prepared model, (B, Tq, Hq, D), in transformers' calling convention."""
    cache = _active.cache
    if cache is None:
        # Without a plan nothing here would hide the future.
        raise ValueError("a prepared model needs a SinkCache as past_key_values")
    refuse_dropout(dropout)
    plan = cache._plan_of(module.layer_idx, query.device)
    if _active.observer is not None:
        for seen in blocks_of(query, key, plan, scaling, cache, module.layer_idx, softcap, s_aux):
            _active.observer(module.layer_idx, seen)
    if isinstance(plan, DecodePlan):
        layer = cache.layers[module.layer_idx]
        out = layer.attend(query, key, value, plan, scaling, softcap=softcap, sink_logits=s_aux)
    else:
        out = attend(query, key, value, plan.attention, scaling, softcap=softcap, sink_logits=s_aux)
    return out.transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The plan hides what a query must not see; a T x T mask would cost memory that grows with the stream."""


def _before_forward(
    base: PreTrainedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    rotaries: tuple[Rotary | None, ...],
    takes_cache_position: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    # By its type: its name changed from past_key_values to cache in transformers 5.24.
    cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, SinkCache)), None)
    _active.cache = None
    if cache is None:
        return None
    tokens = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    if len(cache.layers) != len(rotaries):
        raise ValueError(
            f"SinkCache has {len(cache.layers)} layers, the model {len(rotaries)}; make it with model.config"
        )
    dtype = torch.promote_types(base.dtype, torch.float32)
    plan = cache._begin_pass(tokens.shape[1], rotaries, dtype, kwargs.get("attention_mask"))
    positions = plan.positions(tokens.device)
    _active.cache, cache._model = cache, weakref.ref(base)
    changed = {"attention_mask": None, "position_ids": positions}
    if takes_cache_position:
        changed["cache_position"] = positions[0]
    return args, {**kwargs, **changed}


def _after_forward(base: nn.Module, args: Any, output: Any) -> None:
    if _active.cache is not None:
        _active.cache._end_pass()
        _active.cache = None


def switch(model: PreTrainedModel) -> ExitStack:
    """Prepare `model` for good; closing the stack undoes it. See `prepare`."""
    if hasattr(model, "get_base_model"):  # of peft, which keeps the model itself inside
        model = model.get_base_model()
    layer_windows(model.config)  # refuses by the config alone
    logits = _plain_logits(model)
    rotaries = ask_layers(model)
    check_attention(model)
    base, plain = model.base_model, _plain_hidden(model, logits)
    AttentionInterface.register(ATTENTION_NAME, attention_forward)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
    with ExitStack() as undo:
        undo.callback(model.set_attn_implementation, model.config._attn_implementation)
        base.rotaries = rotaries
        undo.callback(delattr, base, "rotaries")
        model.set_attn_implementation(ATTENTION_NAME)
        before = partial(
            _before_forward,
            rotaries=rotaries,
            takes_cache_position=takes_cache_position(base),
        )
        undo.callback(base.register_forward_pre_hook(before, with_kwargs=True).remove)
        undo.callback(base.register_forward_hook(_after_forward).remove)
        _check_stream(model, plain)
        return undo.pop_all()


@contextmanager
def prepare(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Let `model` take a `SinkCache`, until the block ends.

    Its attention becomes ours, through transformers' attention interface, and a hook on the base model
    gives it the bounded positions of the cache. In the block it takes no other cache. Threads may share it,
    each with a cache of its own.

    Args:
        model: a causal language model with rotary positions, or a peft model around one.

    Raises:
        ValueError: if the model is of a kind that this cannot be exact for.
    """
    with switch(model):
        yield model


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Show all attention of prepared models in this thread to `observer`, until the block ends.

    Args:
        observer: called with the index of a layer and each of its blocks of queries, in the order of the
            stream; what it does not keep is gone.

    Raises:
        ValueError: in the forward, if a batch has left pads.
    """
    before = _active.observer
    _active.observer = observer
    try:
        yield
    finally:
        _active.observer = before


def is_observed() -> bool:
    """Return whether attention is shown in this thread: then it has to go through `attention_forward`."""
    return _active.observer is not None


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model attend by its own plain operations; SDPA leaves out soft caps (transformers 5.2)."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def _plain_logits(model: PreTrainedModel) -> Tensor:
    """Return the logits of a few tokens under the model's own attention, (T, V).

    Raises:
        ValueError: if they are not finite.
    """
    with explained(model), _plain_attention(model):
        logits: Tensor = model(probe_ids(model, CHECKED_TOKENS), use_cache=False).logits[0]
    if not logits.isfinite().all():
        raise ValueError(
            f"{model.config._name_or_path}: the weights give logits that are not finite; "
            f"the files are damaged, or {str(model.dtype).removeprefix('torch.')} is too narrow for it"
        )
    return logits


@torch.inference_mode()
def _plain_hidden(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Return the hidden states of the same tokens, (1, T, H).

    Raises:
        ValueError: if `head_of` the model does not make its logits (T, V) of them.
    """
    if model.base_model is model:
        raise Unsupported(model, "has no head apart from its base")
    ids = probe_ids(model, CHECKED_TOKENS)
    with explained(model), _plain_attention(model):
        hidden: Tensor = model.base_model(ids, use_cache=False).last_hidden_state
        finished = head_of(model)(hidden[0])
    if not is_close(finished, logits):
        raise Unsupported(model, "has a head that needs more than hidden states")
    return hidden


@torch.inference_mode()
def _check_stream(model: PreTrainedModel, plain: Tensor) -> None:
    """Refuse a model that chunks and single tokens through a large cache lead elsewhere than one pass.

    In half precision, rounding may send a token to another expert of a mixture. There the median token is
    compared, and only where layers have a state of fixed size, which one chunk must hand on to the next.
    """
    cache, base = SinkCache(model.config, n_sink=2, window_size=CHECKED_TOKENS), model.base_model
    is_exact = model.dtype in (torch.float32, torch.float64)
    if not is_exact and not cache._kept_states:
        return
    ids = probe_ids(model, CHECKED_TOKENS)
    first, second, rest = ids.split([4, 3, CHECKED_TOKENS - 7], dim=1)
    parts = [first, second, *rest.split(1, 1)]
    with explained(model):
        hidden = [base(part, **cache_argument(base, cache)).last_hidden_state for part in parts]
    difference = torch.cat(hidden, dim=1) - plain
    by_token = difference.norm(dim=-1) / plain.norm(dim=-1)
    if difference.norm() > 1e-3 * plain.norm() if is_exact else by_token.median() > 0.1:
        raise Unsupported(model, "computes something else with this cache than without")
