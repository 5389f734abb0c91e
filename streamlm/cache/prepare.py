"""Prepare a model for `SinkCache`: its attention becomes ours, its positions those in the cache."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from streamlm.cache.attention import attend, attend_one
from streamlm.cache.plan import DecodePlan
from streamlm.cache.rope import Rotary
from streamlm.cache.sink_cache import SUPPORTED, SinkCache, layer_windows

ATTENTION_NAME = "streamlm"


@dataclass
class ActivePass:
    """How a prepared model rotates, and the cache whose pass it is in.

    The base model and its attention modules have it as `active_pass`: not every model hands unknown keywords
    through to its attention (StableLM does not in 5.2).
    """

    rotary: Rotary
    cache: SinkCache | None = None


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
    cache: SinkCache | None = module.active_pass.cache
    if cache is None:
        # Without a plan nothing here would hide the future.
        raise ValueError("a prepared model needs a SinkCache as past_key_values")
    if dropout:
        raise ValueError(
            f"a prepared model has no attention dropout, and this one asks for {dropout}; call eval()"
        )
    if softcap is not None or s_aux is not None:
        raise ValueError(f"attention with soft-capped scores or learned sinks is not known here; {SUPPORTED}")
    plan = cache._plan_of(module.layer_idx, query.device)
    if isinstance(plan, DecodePlan):
        return attend_one(query, key, value, plan.visible, scaling).transpose(1, 2), None
    return attend(query, key, value, plan.attention, scaling).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The plan hides what a query must not see; a T x T mask would cost memory that grows with the stream."""


def _before_forward(
    model: PreTrainedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    active: ActivePass,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    cache = kwargs.get("past_key_values")
    active.cache = None
    if not isinstance(cache, SinkCache):
        return None
    tokens = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if len(cache.layers) != n_layers:
        raise ValueError(
            f"SinkCache has {len(cache.layers)} layers, the model {n_layers}; make it with model.config"
        )
    dtype = torch.promote_types(model.dtype, torch.float32)
    plan = cache._begin_pass(tokens.shape[1], active.rotary, dtype, kwargs.get("attention_mask"))
    active.cache = cache
    return args, {**kwargs, "attention_mask": None, "position_ids": plan.positions(tokens.device)}


def _after_forward(model: PreTrainedModel, args: Any, output: Any, *, active: ActivePass) -> None:
    if active.cache is not None:
        active.cache._end_pass()
        active.cache = None


def rotary_frequencies(model: PreTrainedModel) -> Tensor:
    """Return the model's rotary inverse frequencies, (R,) in rad per position.

    Raises:
        ValueError: if it has no rotary embedding, or several.
    """
    name = type(model).__name__
    rotary = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), Tensor)]
    if len(rotary) != 1:
        raise ValueError(f"{name} has {len(rotary)} rotary embeddings, not 1; {SUPPORTED}")
    inv_freq: Tensor = rotary[0].inv_freq
    return inv_freq


def switch(model: PreTrainedModel) -> ExitStack:
    """Prepare `model` for good; closing the stack undoes it. See `prepare`."""
    layer_windows(model.config)
    AttentionInterface.register(ATTENTION_NAME, attention_forward)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
    plain = _probe_plain(model)
    active = ActivePass(Rotary(rotary_frequencies(model)))  # longrope has others after a long text
    base: nn.Module = model.base_model
    with ExitStack() as undo:
        undo.callback(model.set_attn_implementation, model.config._attn_implementation)
        for module in (base, *(part for part in model.modules() if hasattr(part, "layer_idx"))):
            module.active_pass = active
            undo.callback(delattr, module, "active_pass")
        model.set_attn_implementation(ATTENTION_NAME)
        before, after = partial(_before_forward, active=active), partial(_after_forward, active=active)
        undo.callback(base.register_forward_pre_hook(before, with_kwargs=True).remove)
        undo.callback(base.register_forward_hook(after).remove)
        _probe_rotary(model, active, plain)
        return undo.pop_all()


@contextmanager
def prepare(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Let `model` take a `SinkCache`, until the block ends.

    Its attention becomes ours, through transformers' attention interface, and a hook on the base model
    gives it the bounded positions of the cache. In the block it takes no other cache.

    Args:
        model: a causal language model with rotary positions.

    Raises:
        ValueError: if the model is of a kind that this cannot be exact for.
    """
    with switch(model):
        yield model


PROBE_TOKENS = 16


def _probe_ids(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(PROBE_TOKENS, device=model.device) * 37
    return (ids % int(model.config.vocab_size))[None]


@torch.inference_mode()
def _probe_plain(model: PreTrainedModel) -> Tensor:
    """Return the logits of a few tokens under the model's own attention, (1, T, V)."""
    logits: Tensor = model(_probe_ids(model), use_cache=False).logits
    if not logits.isfinite().all():
        raise ValueError(
            f"{model.config._name_or_path}: the weights give logits that are not finite; "
            f"the files are damaged, or {str(model.dtype).removeprefix('torch.')} is too narrow for it"
        )
    return logits


@torch.inference_mode()
def _probe_rotary(model: PreTrainedModel, active: ActivePass, plain: Tensor) -> None:
    """Find how the model rotates, by trying; leave it in `active`.

    Raises:
        ValueError: if our attention, our rotation or a plain head would silently be wrong for this model.
    """
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.1
    name, inv_freq = type(model).__name__, active.rotary.inv_freq
    for active.rotary in (Rotary(inv_freq), Rotary(inv_freq, interleaved=True)):
        dense = _probe_stream(model, PROBE_TOKENS, n_sink=2, window_size=PROBE_TOKENS)
        once = _probe_stream(model, PROBE_TOKENS, n_sink=2, window_size=4)
        rebased = _probe_stream(model, 4, n_sink=2, window_size=4, position_limit=0)
        if (dense - plain).norm() > tolerance * plain.norm():
            raise ValueError(f"{name} has an attention or a head that is not known here; {SUPPORTED}")
        if (rebased - once).norm() <= tolerance * once.norm():
            return
    raise ValueError(f"{name} rotates queries and keys in a way that is not known here; {SUPPORTED}")


def _probe_stream(model: PreTrainedModel, chunk: int, **geometry: Any) -> Tensor:
    cache = SinkCache(model.config, **geometry)
    hidden = [
        model.base_model(part, past_key_values=cache).last_hidden_state
        for part in _probe_ids(model).split(chunk, 1)
    ]
    logits: Tensor = model.get_output_embeddings()(torch.cat(hidden, dim=1))
    return logits
