"""Ask a model how each of its layers rotates, what it lets a query see, and how it attends.

The attention output of a lone token is its own value, whatever its position. So a token that is fed by itself
at two positions has the same hidden states in every layer, and its queries and keys differ by what the layer
does with positions, and by nothing else.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from streamlm.cache.attention import attend, plan_attention, streaming_mask
from streamlm.cache.forward import cache_argument, takes_cache_position
from streamlm.cache.rope import Rotary
from streamlm.cache.supported import SUPPORTED, layer_windows, rope_limit
from streamlm.config import StreamConfig

PROBE_NAME = "streamlm_probe"
POSITIONS = (7, 501)  # at which a lone token is compared with itself at 0
CHECKED_TOKENS = 12
FAR = 300_000  # a position at which the keys that a mask shows are counted

# What models hand to an attention function and we know: taken into account, or of no effect on the result.
KNOWN = {
    "scaling", "softcap", "s_aux", "sliding_window", "is_causal", "position_ids", "cache_position",
    "output_attentions", "use_cache",
}  # fmt: skip


class Refused(ValueError):
    """Why a model is not taken, in one line."""


class Unsupported(Refused):
    """A model that a `SinkCache` cannot be exact for."""

    def __init__(self, model: PreTrainedModel, what: str) -> None:
        super().__init__(f"{type(model).__name__} {what}; {SUPPORTED}")


@dataclass
class Heard:
    """What the attention of one layer was given for a lone token."""

    query: Tensor  # (1, Hq, 1, D)
    key: Tensor  # (1, Hkv, 1, D)
    window: int | None  # that its mask shows: 0 for all, -1 for a mask that is no window, None without a mask
    options: dict[str, Any]


class _Listener(DynamicCache):  # type: ignore[misc]
    """A cache that notes which keys it is given, while an attention notes what reaches it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values
        self.heard: dict[int, Heard] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.stored[layer_idx] = key_states, value_states
        return key_states, value_states


@dataclass
class _Probing(threading.local):
    """What is being asked in this thread."""

    attention: Callable[..., Tensor] | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)  # that stand for a window, by its size; 0 is none


_probing = _Probing()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, dropout: Any = 0, **more: Any
) -> Any:
    refuse_dropout(dropout)
    assert _probing.attention is not None
    return _probing.attention(module, query, key, value, attention_mask, **more), None


def refuse_dropout(dropout: float) -> None:
    """Raise ValueError if a model asks for dropout in its attention."""
    if dropout:
        raise Refused(
            f"a prepared model has no attention dropout, and this one asks for {dropout}; call eval()"
        )


def _window_mask(*_: Any, mask_function: Callable[..., Any], **__: Any) -> Tensor:
    """Return a tensor that stands for the window of a mask; -1 for one that is no window."""
    sizes = set()
    for query in (FAR, FAR + 1):
        keys = torch.arange(query + 1)
        index = torch.tensor(query)
        seen = torch.as_tensor(mask_function(torch.tensor(0), torch.tensor(0), index, keys)).expand(len(keys))
        count = int(seen.sum())
        is_suffix = count > 0 and bool(seen[-count:].all())
        sizes.add(-1 if not is_suffix else 0 if count == len(keys) else count)
    size = sizes.pop() if len(sizes) == 1 else -1
    return _probing.masks.setdefault(size, torch.full((1, 1, 1, 1), size))


@contextmanager
def _asking(model: PreTrainedModel, attention: Callable[..., Tensor]) -> Iterator[None]:
    """Let `attention` be the model's, in this thread, until the block ends."""
    before = model.config._attn_implementation
    AttentionInterface.register(PROBE_NAME, _attention)
    AttentionMaskInterface.register(PROBE_NAME, _window_mask)
    _probing.attention, _probing.masks = attention, {}
    try:
        model.set_attn_implementation(PROBE_NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        _probing.attention = None


@torch.inference_mode()
def ask_layers(model: PreTrainedModel) -> tuple[Rotary | None, ...]:
    """Return how each layer of a model rotates; layers that rotate alike have the same object.

    Args:
        model: as transformers has it.

    Returns:
        one entry for each layer; None where a layer does not rotate, or does not attend.

    Raises:
        ValueError: if a layer does something else with positions, sees other keys than its config says, or
            keeps attention code of its own.
    """
    windows = layer_windows(model.config)
    limit = rope_limit(model.config) or FAR
    positions = sorted({min(position, limit - 1) for position in POSITIONS})
    still = _hear(model, 0)
    if not still.heard:
        raise Unsupported(model, "keeps attention code of its own")
    missing = sorted(windows.keys() ^ still.heard.keys())
    if missing:
        raise Unsupported(
            model, f"has layers without attention that is known here, such as layer {missing[0]}"
        )
    for i, window in windows.items():
        _check_layer(model, i, still, window)
    moved = {position: _hear(model, position) for position in positions}
    found: dict[int, Rotary | None] = {}
    candidates = [*_candidates(model)]
    for i in windows:
        known = [rotary for rotary in found.values() if rotary is not None]
        rotary = _find(model, i, still, moved, known + candidates)
        for listener in (still, *moved.values()):
            rotary = _as_stored(model, i, listener, still, rotary)
        found[i] = rotary
    return tuple(found.get(i) for i in range(model.config.get_text_config(decoder=True).num_hidden_layers))


def _hear(model: PreTrainedModel, position: int) -> _Listener:
    """Return what every layer is given for one token at a position."""
    listener, base = _Listener(model.config), model.base_model
    at = torch.tensor([[position]], device=model.device)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> Tensor:
        sizes = {id(known): size for size, known in _probing.masks.items()}
        window = None if mask is None else sizes.get(id(mask), -1)
        listener.heard[module.layer_idx] = Heard(query, key, window, options)
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2).contiguous()

    with _asking(model, attention), explained(model):
        base(
            probe_ids(model, 1),
            position_ids=at,
            **cache_argument(base, listener),
            **({"cache_position": at[0]} if takes_cache_position(base) else {}),
        )
    return listener


def probe_ids(model: PreTrainedModel, n_tokens: int) -> Tensor:
    """Return some token ids of a model, (1, T)."""
    vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
    return (torch.arange(1, n_tokens + 1, device=model.device) * 37 % vocab_size)[None]


@contextmanager
def explained(model: PreTrainedModel) -> Iterator[None]:
    """Raise whatever goes wrong in a model's own code as a refusal of one line."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # the code of any model may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise Unsupported(
            model, f"fails when it is tried on a few tokens ({type(error).__name__}: {reason})"
        ) from error


def _check_layer(model: PreTrainedModel, index: int, heard: _Listener, window: int | None) -> None:
    """Refuse what is not known of a layer: its mask, its arguments."""
    layer = heard.heard[index]
    other = [name for name, value in layer.options.items() if value is not None and name not in KNOWN]
    if other:
        raise Unsupported(model, f"gives its attention {other[0]!r}, which is not known here")
    if layer.options.get("scaling") is None:
        raise Unsupported(model, "does not say how its attention scales scores")
    shown = 0 if window is None or window > FAR else window  # a longer one shows all to the queries there
    if layer.window not in (None, shown):
        size = layer.window or "all"
        what = "through a mask of its own" if size == -1 else f"through a window of {size} tokens"
        raise Unsupported(model, f"lets layer {index} see {what}, where its config says {window or 'all'}")


def _as_stored(
    model: PreTrainedModel, index: int, listener: _Listener, still: _Listener, rotary: Rotary | None
) -> Rotary | None:
    """Return how a layer rotates what it stores, having looked at the keys that it stores and attends to."""
    key = listener.heard[index].key
    keys, values = listener.stored.get(index, (key[..., :0], key[..., :0]))
    if _is_repeated(keys, key):
        return replace(rotary, is_apart=False) if rotary is not None and rotary.is_apart else rotary
    if rotary is not None and torch.equal(keys, still.stored.get(index, (key,))[0]):
        rotated = key[..., rotary.first : rotary.first + 2 * len(rotary.inv_freq)]
        if values.shape[1] == 1 and torch.equal(values.expand_as(rotated), rotated):
            return rotary if rotary.is_apart else replace(rotary, is_apart=True)
    raise Unsupported(model, f"changes the keys of layer {index} after they are stored")


def _is_repeated(stored: Tensor, key: Tensor) -> bool:
    """Return whether keys (1, H, 1, D) are those that were stored, once or more often for each head."""
    times = key.shape[1] // stored.shape[1]
    repeated = stored.repeat(1, times, 1, 1), stored.repeat_interleave(times, dim=1)
    return any(x.shape == key.shape and torch.equal(x, key) for x in repeated)


def _candidates(model: PreTrainedModel) -> Iterator[Rotary]:
    """Yield every way to rotate that a model's frequencies allow."""
    found: list[Tensor] = []
    for module in model.modules():
        for name, tensor in {**vars(module), **module._buffers}.items():
            is_new = isinstance(tensor, Tensor) and not any(tensor is other for other in found)
            if "inv_freq" in name and "original" not in name and is_new and tensor.ndim == 1:
                found.append(tensor)
        compute = getattr(module, "rope_init_fn", None)
        if callable(compute) and getattr(module, "rope_type", None) == "default":
            # PhiMoE computes them in every pass. Where that takes other arguments, the buffers are enough.
            with suppress(TypeError, KeyError, AttributeError):
                found.append(compute(module.config)[0].to(model.device))
    for tensor in found:
        for interleaved in (False, True):
            for is_last in (False, True):
                for frequencies in (tensor, -tensor):
                    yield Rotary(frequencies, interleaved, -1 if is_last else 0)


def _find(
    model: PreTrainedModel,
    index: int,
    still: _Listener,
    moved: Mapping[int, _Listener],
    candidates: list[Rotary],
) -> Rotary | None:
    """Return how a layer rotates, the first candidate that explains what moved."""
    pairs = [
        (position, getattr(still.heard[index], name), getattr(listener.heard[index], name))
        for position, listener in moved.items()
        for name in ("query", "key")
    ]
    if all(torch.equal(before, after) for _, before, after in pairs):
        return None
    size = still.heard[index].key.shape[-1]
    for rotary in candidates:
        n_rotary = 2 * len(rotary.inv_freq)
        if rotary.first < 0:  # the last features
            rotary = replace(rotary, first=size - n_rotary)
            if rotary.first <= 0:
                continue
        if rotary.first + n_rotary <= size and all(
            _is_rotated(rotary, position, before, after) for position, before, after in pairs
        ):
            return rotary
    raise Unsupported(
        model, f"changes queries or keys of layer {index} by their position in a way that is not known here"
    )


def _is_rotated(rotary: Rotary, position: int, before: Tensor, after: Tensor) -> bool:
    """Return whether a position rotates `before` to `after`, up to rounding in each pair of features.

    In each pair: beside one large pair, such as trained models have, others may be small.
    """
    rotation = rotary.by(torch.tensor([position], device=before.device), torch.float64)
    difference = after.double() - rotation.apply(before.double())
    a, b = rotary.pairs(before.double())
    lengths = a.hypot(b)  # which rotation leaves as they are
    allowed = _tolerance(before.dtype) * lengths + 1e-6 * lengths.max()
    off = [part.abs() <= allowed for part in rotary.pairs(difference)]
    rest = difference.clone()
    for part in rotary.pairs(rest):
        part.zero_()
    return bool(off[0].all() and off[1].all() and not rest.any())


def _tolerance(dtype: torch.dtype) -> float:
    """Return by how much right results may differ, relatively: some roundings, and angles in float32."""
    return max(2e-4, 4 * torch.finfo(dtype).eps)


def is_close(expected: Tensor, got: Tensor) -> bool:
    """Return whether they are equal up to the rounding of what a model computes in its own precision."""
    return bool((expected.double() - got.double()).abs().max() <= _tolerance(got.dtype) * got.abs().max())


def describe_rotations(model: PreTrainedModel) -> str:
    """Return in words how many layers of a prepared model rotate how, of those that attend."""
    attending = layer_windows(model.config)
    counts = Counter(_describe_rotation(model.base_model.rotaries[i]) for i in attending)
    return "; ".join(f"{how} ({count} layer{'s'[: count - 1]})" for how, count in counts.items())


def _describe_rotation(rotary: Rotary | None) -> str:
    if rotary is None:
        return "no rotation"
    pairs = "neighbours" if rotary.interleaved else "halves"
    first = f" from feature {rotary.first} on" if rotary.first else ""
    # Of the slowest pair, by which sets of frequencies can be distinguished.
    period = 2 * torch.pi / float(rotary.inv_freq[rotary.inv_freq != 0].abs().min())
    backwards = ", backwards" if float(rotary.inv_freq.sum()) < 0 else ""
    return (
        f"{2 * len(rotary.inv_freq)} features{first}, paired by {pairs}{backwards}, "
        f"the slowest once around in {period:,.0f} positions"
    )


@torch.inference_mode()
def check_attention(model: PreTrainedModel) -> None:
    """Raise ValueError unless our attention gives in every layer what its own gives, on the same inputs.

    Each layer is compared by itself: in half precision, the output of the whole model can hide a wrong layer;
    and where rounding changes which experts a token is sent to, it differs although every layer is right.
    Both compute in float32 at least, where large scores are not rounded to other weights.
    """
    windows, wrong = layer_windows(model.config), dict[int, float]()

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Tensor:
        n_tokens, device = query.shape[2], query.device
        cfg = StreamConfig(n_sink=0, window_size=windows[module.layer_idx] or n_tokens)
        tokens = torch.arange(n_tokens, device=device)
        hidden = ~streaming_mask(tokens, tokens, cfg)
        dtype = torch.promote_types(query.dtype, torch.float32)
        bias = torch.zeros(1, 1, n_tokens, n_tokens, dtype=dtype, device=device)
        bias.masked_fill_(hidden, torch.finfo(dtype).min)
        states = query.to(dtype), key.to(dtype), value.to(dtype)
        own: Tensor = _own_attention(module)(module, *states, bias, dropout=0.0, **options)[0]
        plan = plan_attention(cfg, None, device, n_past=0, n_new=n_tokens, dtype=dtype)
        ours = attend(
            *states,
            plan,
            options["scaling"],
            softcap=options.get("softcap"),
            sink_logits=options.get("s_aux"),
        ).transpose(1, 2)
        if not is_close(own, ours):
            wrong[module.layer_idx] = float((own - ours).abs().max())
        return own.to(query.dtype)

    with _asking(model, attention), explained(model):
        model.base_model(probe_ids(model, CHECKED_TOKENS), use_cache=False)
    if wrong:
        raise Unsupported(model, f"attends in another way, in layer {min(wrong)}")


def _own_attention(module: Any) -> Callable[..., Any]:
    """Return the attention function beside the class of a module, in plain operations."""
    own: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
    return own
