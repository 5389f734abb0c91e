"""Prefill compression, as kvpress is made for: a context is cut once, and what follows it is scored."""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from streamlm.cache.prepare import prepare
from streamlm.cache.probe import ask_layers
from streamlm.cache.rope import Rotary
from streamlm.cache.sink_cache import SinkCache
from streamlm.measure.device import now
from streamlm.measure.memory import held_bytes
from streamlm.measure.scoring import CHUNK
from streamlm.presses.adapter import (
    KeptLayer,
    Layer,
    attached,
    check_budget,
    exact_ratio,
    filled_cache,
    kept_layer,
    make_press,
    masking,
    refusal,
)
from streamlm.presses.agreement import Agreement, compare_hidden, stack_scores
from streamlm.presses.grammar import DENSE_PREFILL, OURS, STREAMLM, check_budgets, check_context, parse_press
from streamlm.presses.setting import Setting, Sizes, name_text, open_setting, step
from streamlm.records.types import Record

PROTOCOL = (
    "prefill compression: a context is cut once to the budget, the following tokens are scored after it"
)
WARMUP_TOKENS = 128
TIMED_TOKENS = 8  # of the first piece of each text: decoded one by one after the full budget


@dataclass(frozen=True, kw_only=True)
class ContextConfig(Sizes):
    """How much is read and scored, in tokens."""

    contexts: int  # pieces of the text, each a stream of its own
    context_tokens: int  # of each, to be compressed
    scored_tokens: int  # of each, after it

    @property
    def n_ids(self) -> int:
        """Token ids that all pieces take together; the last of each is only predicted."""
        return self.contexts * (self.context_tokens + self.scored_tokens + 1)

    def within(self, n_tokens: int) -> "ContextConfig":
        """Return as many of these pieces as a text of `n_tokens` holds, one at least."""
        held = max(1, n_tokens // (self.n_ids // self.contexts))
        return replace(self, contexts=min(held, self.contexts))


Compress = Callable[[int, Any, dict[str, Any], Tensor, Tensor], KeptLayer]  # to a budget
Cut = Callable[[Any, dict[str, Any], Tensor, Tensor], KeptLayer]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class PrefilledCache:
    """A cache after a context, the position of the next token, and what it took to fill the cache."""

    cache: Cache
    position: int | None  # of the next token; None leaves it to the cache
    prefill_sec: float


@dataclass(frozen=True)
class Cost:
    """What one cache took on one piece of text."""

    prefill_sec: float
    step_ms: list[float]  # of every token that was decoded by itself
    kv_bytes: int  # after the context
    kv_bytes_at_end: int  # after the scored tokens


@dataclass(frozen=True)
class PieceScore:
    """What one cache gave on one piece of text."""

    agreement: Agreement
    cost: Cost


@torch.inference_mode()
def measure_compression(
    setting: Setting, *, method: str, contexts: ContextConfig, n_sink: int, budgets: Sequence[int]
) -> tuple[Record, np.ndarray]:
    """Score after compressed contexts of each text at several budgets; return the record and the scores.

    ``streamlm`` streams the context through a `SinkCache` and continues so, within the budget to the end;
    all others are prefilled densely, cut once, and then grow by the scored tokens, as in kvpress.
    ``streamlm_dense_prefill`` is our eviction after a dense prefill.

    Args:
        setting: model and texts.
        method: "streamlm", "streamlm_dense_prefill", or a press as `parse_press` reads it.
        contexts: how much is read; fewer pieces, with a warning, where a text does not hold them.
        n_sink: first tokens that our methods keep.
        budgets: entries kept, in every layer.

    Returns:
        the record, with an entry in `texts` for each, and in their `budgets` one for each budget, none if
        the press cannot work on the model; float32 losses, and divergences from dense, both in nats:
        (2, texts, 1 + budgets, tokens), dense first.

    Raises:
        ValueError: for any mistake in the above; if a layer does not keep exactly the budget.
    """
    check_budgets(budgets, n_sink, contexts.context_tokens)
    press = None if method in OURS else parse_press(method)
    if press is not None:
        check_context(press, contexts.context_tokens)
    asked, contexts = contexts.contexts, contexts.within(min(map(len, setting.texts.values())))
    opened = open_setting(setting, module=__file__, n_ids=contexts.n_ids)
    if contexts.contexts < asked:
        warnings.warn(
            f"the shortest text holds {contexts.contexts} of {asked} contexts, and each is measured on these",
            stacklevel=2,
        )
    model, reason = opened.model, None if press is None else refusal(press, opened.model)
    used = [] if reason else list(budgets)
    sizes = [contexts.context_tokens, *used]
    entries, scores = [], []
    for dataset, ids in opened.texts.items():
        model.base_model(ids[None, :WARMUP_TOKENS])  # a first pass is slower
        pieces = [
            _score_piece(
                model, piece, contexts.context_tokens, method, n_sink, used, n_timed=0 if i else TIMED_TOKENS
            )
            for i, piece in enumerate(ids.view(contexts.contexts, -1))
        ]
        columns = list(zip(*pieces, strict=True))  # of one cache each
        agreements = [Agreement.joined([score.agreement for score in column]) for column in columns]
        dense, *cut = (
            {"capacity": capacity, **agreement.describe(setting.bootstrap), **_describe_costs(column)}
            for capacity, agreement, column in zip(sizes, agreements, columns, strict=True)
        )
        entries.append({**name_text(dataset, ids), "dense": dense, "budgets": cut})
        scores.append([agreement.scores for agreement in agreements])
    record = {
        **opened.record,
        "method": method,
        "n_sink": n_sink,
        "protocol": PROTOCOL,
        "contexts": asdict(contexts),
        "refused": reason,
        "texts": entries,
    }
    return record, stack_scores(scores)


def _describe_costs(scores: Sequence[PieceScore]) -> dict[str, Any]:
    """Return what one cache took on all pieces, as JSON; times are medians."""
    costs = [score.cost for score in scores]
    return {
        "prefill_sec": float(np.median([cost.prefill_sec for cost in costs])),
        "step_ms": float(np.median([ms for cost in costs for ms in cost.step_ms])),
        "kv_bytes": max(cost.kv_bytes for cost in costs),
        "kv_bytes_at_end": max(cost.kv_bytes_at_end for cost in costs),
    }


def _score_piece(
    model: PreTrainedModel,
    piece: Tensor,
    n_context: int,
    method: str,
    n_sink: int,
    budgets: Sequence[int],
    *,
    n_timed: int,
) -> list[PieceScore]:
    """Return what the dense cache and each budget give on one piece of text: context, scored, one id."""
    context, follow, targets = piece[None, :n_context], piece[None, n_context:-1], piece[n_context + 1 :]
    rerotated = method not in OURS and parse_press(method).rerotates
    compress = compressor(model, method, n_sink)
    cuts = {} if compress is None else {budget: partial(compress, budget) for budget in budgets}
    dense, cut = prefill_densely(model, context, cuts)
    read = [_read_on(model, dense, follow, n_timed)]
    with prepare(model) if method == STREAMLM else nullcontext():
        for budget in budgets:
            if method == STREAMLM:
                filled = _prefill_streaming(model, context, n_sink, budget)
                check_budget(filled.cache.layers, budget)
                read.append(_read_on(model, filled, follow, n_timed))
            else:
                position = None if rerotated else n_context
                layers, seconds = cut[budget]
                check_budget(layers, budget)
                cache = filled_cache(model, layers)
                filled = PrefilledCache(cache, position, dense.prefill_sec + seconds)
                with masking(model, cache, layers):
                    read.append(_read_on(model, filled, follow, n_timed))
    agreements = compare_hidden(model.get_output_embeddings(), [hidden for hidden, _ in read], targets)
    return [PieceScore(agreement, cost) for agreement, (_, cost) in zip(agreements, read, strict=True)]


def compressor(model: PreTrainedModel, method: str, n_sink: int) -> Compress | None:
    """Return what cuts one layer to a budget, or None where nothing is cut after a dense prefill."""
    if method == STREAMLM:
        return None
    if method == DENSE_PREFILL:
        rotaries = ask_layers(model)
        return lambda budget, module, kwargs, keys, values: KeptLayer(
            *evict(keys, values, n_sink, budget, rotaries[module.layer_idx])
        )
    press = make_press(parse_press(method))
    press.post_init_from_model(model)

    def compress(budget: int, module: Any, kwargs: dict[str, Any], keys: Tensor, values: Tensor) -> KeptLayer:
        press.compression_ratio = exact_ratio(keys.shape[2], budget)
        return kept_layer(press, module, kwargs["hidden_states"], keys, values, kwargs)

    return compress


def evict(keys: Tensor, values: Tensor, n_sink: int, budget: int, rotary: Rotary | None) -> Layer:
    """Return the sinks, rotated to their positions in the cache, and the most recent tokens as they are.

    The next token keeps its position in the text: only distances matter, and the sinks come nearer.

    Args:
        keys: (B, Hkv, T, D) rotated as positions 0 .. T-1.
        values: (B, Hkv, T, D).
        n_sink: first tokens kept.
        budget: tokens kept.
        rotary: of the layer; None if it does not rotate.

    Returns:
        keys and values, (B, Hkv, budget, D).
    """
    n_tokens = keys.shape[2]
    sinks, recent = keys[:, :, :n_sink], slice(n_tokens - budget + n_sink, None)
    if rotary is not None:
        nearer = torch.tensor([n_tokens - budget], device=keys.device)
        sinks = rotary.by(nearer, torch.promote_types(keys.dtype, torch.float32)).apply(sinks)
    return (
        torch.cat((sinks, keys[:, :, recent]), dim=2),
        torch.cat((values[:, :, :n_sink], values[:, :, recent]), dim=2),
    )


def prefill_densely(
    model: PreTrainedModel, context: Tensor, cuts: Mapping[Key, Cut]
) -> tuple[PrefilledCache, dict[Key, tuple[list[KeptLayer], float]]]:
    """Read a context whole; return the dense cache, and of each cut what is kept and the seconds it took.

    All cut the same pass, layer by layer as kvpress does it.
    """
    cache = DynamicCache(config=model.config)
    layers: dict[Key, list[KeptLayer]] = {key: [] for key in cuts}
    seconds = dict.fromkeys(cuts, 0.0)

    def cut_layer(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = cache.layers[module.layer_idx]
        for key, cut in cuts.items():
            begin = now(context.device)
            layers[key].append(cut(module, kwargs, layer.keys, layer.values))
            seconds[key] += now(context.device) - begin

    with attached(cut_layer, model):
        begin = now(context.device)
        model.base_model(context, past_key_values=cache)
        whole = now(context.device) - begin
    return PrefilledCache(cache, None, whole - sum(seconds.values())), {
        key: (layers[key], seconds[key]) for key in cuts
    }


def _prefill_streaming(model: PreTrainedModel, context: Tensor, n_sink: int, budget: int) -> PrefilledCache:
    """Stream a context through a `SinkCache` of this budget; `model` is prepared."""
    cache = SinkCache(model.config, n_sink=n_sink, window_size=budget - n_sink)
    begin = now(context.device)
    for block in context.split(cache.longest_pass(CHUNK), dim=1):
        model.base_model(block, past_key_values=cache)
    return PrefilledCache(cache, None, now(context.device) - begin)


def _read_on(
    model: PreTrainedModel, filled: PrefilledCache, follow: Tensor, n_timed: int
) -> tuple[Tensor, Cost]:
    """Feed the tokens after a context, (1, T); return their hidden states (T, H) and what it took.

    Afterwards the first `n_timed` are decoded one by one after the budget, to be timed.
    """
    cache, first = filled.cache, filled.position
    n_held, kv_bytes = cache.layers[0].keys.shape[2], held_bytes(cache)
    positions = None if first is None else first + torch.arange(follow.shape[1], device=follow.device)[None]
    hidden = model.base_model(follow, past_key_values=cache, position_ids=positions).last_hidden_state[0]
    at_end = held_bytes(cache)
    if isinstance(cache, DynamicCache):
        cache.crop(n_held)
    step_ms = [
        step(model, follow[:, i : i + 1], cache, None if first is None else first + i)[1]
        for i in range(min(n_timed, follow.shape[1]))
    ]
    return hidden, Cost(filled.prefill_sec, step_ms, kv_bytes, at_end)
