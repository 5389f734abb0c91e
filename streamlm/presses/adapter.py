"""Run kvpress on a model: with exact budgets, on GPT-NeoX as well, and in a way that equals the paper.

Importing kvpress changes transformers' attention functions for the whole process, so only functions here
import it, and only processes of their own call them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from streamlm.cache.supported import layer_windows
from streamlm.presses.grammar import Press, parse_press

# Of kvpress's own list, the models that are one text decoder with full attention; and GPT-NeoX.
FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gpt_neox")

Hook = Callable[[nn.Module, Any, dict[str, Any], Any], Any]
Layer = tuple[Tensor, Tensor]  # keys and values, (B, Hkv, T, D)


@dataclass(frozen=True)
class KeptLayer:
    """What a press leaves of one layer."""

    keys: Tensor  # (B, Hkv, T, D)
    values: Tensor  # (B, Hkv, T, D)
    masked: tuple[Tensor, Tensor, Tensor] | None = None  # rows, heads and slots that no query sees


def check_model(model: PreTrainedModel) -> None:
    """Raise ValueError unless presses can be compared on `model`."""
    if model.config.model_type not in FAMILIES or any(
        window is not None for window in layer_windows(model.config).values()
    ):
        raise ValueError(
            f"presses cannot be compared on {type(model).__name__}; they can on models of the types "
            f"{', '.join(FAMILIES)} with full attention in every layer"
        )


def refusal(press: Press, model: PreTrainedModel) -> str | None:
    """Return why `press` cannot work on `model`, or None if it can."""
    if model.config.model_type == "gpt_neox" and press.needs_queries:
        return (
            "it uses the projections q_proj or o_proj, and GPT-NeoX has one joint query_key_value; presses "
            "that need only keys and values work"
        )
    return None


def refused_presses(model: PreTrainedModel, presses: Iterable[str]) -> dict[str, str]:
    """Return why presses, as they are written, cannot work on `model`; those that can are left out."""
    try:
        check_model(model)
    except ValueError as error:
        return dict.fromkeys(presses, str(error))
    reasons = {press: refusal(parse_press(press), model) for press in presses}
    return {press: reason for press, reason in reasons.items() if reason is not None}


def make_press(press: Press) -> Any:
    """Return the kvpress object that `press` describes; it rotates only the rotary features of keys.

    Raises:
        ValueError: if kvpress refuses an argument.
    """
    import kvpress

    inner = {} if press.inner is None else {"press": make_press(press.inner)}
    try:
        made = getattr(kvpress, press.name)(**inner, **press.arguments)
    except (AssertionError, TypeError) as error:
        raise ValueError(f"kvpress refuses {press.name}: {error}") from error
    if press.rerotates:
        made.rerotate_keys = rerotate_keys
    return made


def make_decoding_press(
    press: Press, model: PreTrainedModel, target: int, interval: int, *, in_order: bool = False
) -> Any:
    """Return kvpress's DecodingPress over `press`: every `interval` tokens it cuts the cache to `target`.

    It is built over the press that scores and then gets the wrapping one: its constructor refuses
    KeyRerotationPress, although it works with it.

    Args:
        press: what scores, or KeyRerotationPress of it.
        model: that it works on.
        target: tokens kept.
        interval: tokens between two cuts.
        in_order: keep the order of the text, as KeyRerotationPress does, and rotate nothing.
    """
    import kvpress

    scorer = make_press(press.inner or press)
    made = kvpress.DecodingPress(scorer, compression_interval=interval, target_size=target)
    if in_order:
        made.base_press = kvpress.KeyRerotationPress(scorer)
        made.base_press.rerotate_keys = gather_keys
    elif press.inner is not None:
        made.base_press = make_press(press)
    made.post_init_from_model(model)
    return made


def gather_keys(module: Any, indices: Tensor, keys: Tensor) -> Tensor:
    """Return the keys (B, Hkv, n_kept, D) at `indices` (B, Hkv, n_kept), of keys (B, Hkv, T, D)."""
    return keys.gather(2, indices[..., None].expand(-1, -1, -1, keys.shape[-1]))


def rerotate_keys(module: Any, indices: Tensor, keys: Tensor) -> Tensor:
    """Return the kept keys rotated to positions 0, 1, …: kvpress's rule, on the rotary features alone.

    Args:
        module: the attention, with `rotary_emb`.
        indices: (B, Hkv, n_kept) kept positions, ascending.
        keys: (B, Hkv, T, D).

    Returns:
        (B, Hkv, n_kept, D)

    Source: kvpress 0.5.5, key_rerotation_press.py, which takes all D features to be rotary.
    """
    from kvpress import KeyRerotationPress
    from transformers.models.llama.modeling_llama import rotate_half

    inv_freq = module.rotary_emb.inv_freq
    rotary, other = gather_keys(module, indices, keys).tensor_split([2 * len(inv_freq)], dim=-1)
    cos, sin = KeyRerotationPress._rerotate_cos_sin(rotary, inv_freq, indices)
    return torch.cat((rotary * cos + rotate_half(rotary) * sin, other), dim=-1)


def attention_modules(model: PreTrainedModel) -> list[Any]:
    """Return the attention of every layer, in order."""
    modules = [module for module in model.modules() if hasattr(module, "layer_idx")]
    return sorted(modules, key=lambda module: module.layer_idx)


@contextmanager
def attached(hook: Hook, model: PreTrainedModel) -> Iterator[None]:
    """Call `hook` after every attention as kvpress does in a Llama, until the block ends.

    GPT-NeoX passes hidden states by position, calls the cache `layer_past` and lacks `head_dim`. The
    attention of no family has `rotary_emb`.
    """
    rotary = next(module for module in model.modules() if hasattr(module, "inv_freq"))

    def call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        named = dict(kwargs)
        if "hidden_states" not in named:
            named["hidden_states"] = args[0]
        if "past_key_values" not in named:
            named["past_key_values"] = named.pop("layer_past")
        return hook(module, args, named, output)

    with ExitStack() as undo:
        for module in attention_modules(model):
            for name, value in (("rotary_emb", rotary), ("head_dim", getattr(module, "head_size", None))):
                if not hasattr(module, name):
                    setattr(module, name, value)
                    undo.callback(delattr, module, name)
            undo.callback(module.register_forward_hook(call, with_kwargs=True).remove)
        yield


def exact_ratio(n_tokens: int, n_kept: int) -> float:
    """Return the compression ratio at which kvpress keeps exactly `n_kept` of `n_tokens`.

    It keeps int(n_tokens * (1 - ratio)); with the ratio 1 - n_kept / n_tokens, rounding can lose a token.
    """
    ratio = 1 - (n_kept + 0.5) / n_tokens
    assert int(n_tokens * (1 - ratio)) == n_kept
    return ratio


def kept_layer(
    press: Any, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, kwargs: Any
) -> KeptLayer:
    """Return what `press` leaves of a layer, (B, Hkv, T, D), after a pass over `hidden` (B, T, H).

    Raises:
        ValueError: if kvpress refuses what it is given.
    """
    try:
        keys, values = press.compress(module, hidden, keys, values, None, kwargs)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:  # the latter where its linear algebra fails
        raise ValueError(f"kvpress refuses {type(press).__name__}: {error}") from error
    return KeptLayer(keys, values, vars(module).pop("masked_key_indices", None))


def repeat_rows(layer: KeptLayer, count: int) -> KeptLayer:
    """Return what is kept of one stream, as often as said, in the rows of a batch."""
    masked = layer.masked
    if masked is not None:
        _, heads, slots = masked
        rows = torch.arange(count, device=slots.device).repeat_interleave(len(slots))
        masked = rows, heads.repeat(count), slots.repeat(count)
    return KeptLayer(
        layer.keys.repeat_interleave(count, dim=0), layer.values.repeat_interleave(count, dim=0), masked
    )


def check_budget(layers: Iterable[Any], budget: int) -> None:
    """Raise ValueError unless every layer, of a cache or `KeptLayer`, keeps `budget` tokens.

    Where heads keep different numbers, their mean counts.
    """
    counts = []
    for layer in layers:
        n_rows, n_heads, n_held, _ = layer.keys.shape
        masked = getattr(layer, "masked", None)
        counts.append(n_held - (0 if masked is None else len(masked[0]) / (n_rows * n_heads)))
    if set(counts) != {budget}:
        raise ValueError(
            f"layers keep {min(counts):g} to {max(counts):g} tokens where the budget is {budget}"
        )


def filled_cache(model: PreTrainedModel, layers: Iterable[KeptLayer]) -> DynamicCache:
    """Return a `DynamicCache` with these keys and values."""
    cache = DynamicCache(config=model.config)
    for i, layer in enumerate(layers):
        cache.update(layer.keys, layer.values, i)
    return cache


@contextmanager
def masking(model: PreTrainedModel, cache: DynamicCache, layers: Sequence[KeptLayer]) -> Iterator[None]:
    """Hide what the layers mask from every query that is read into `cache`, until the block ends.

    kvpress overwrites the masked keys with one that no query gives weight, which it cannot always find; a
    mask gives the same losses.

    Args:
        model: whose attention takes a mask (B, Hq, Tq, Tk) that is added to the scores.
        cache: filled with the keys and values of `layers`.
        layers: of the model, in order.

    Source: kvpress 0.5.5, attention_patch.py.
    """

    def hide(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        keys = cache.layers[module.layer_idx].keys
        n_held, n_queries = keys.shape[2], hidden.shape[1]
        later = keys.new_ones(n_queries, n_held + n_queries, dtype=torch.bool).triu(n_held + 1)
        unseen = later.expand(*keys.shape[:2], -1, -1).clone()  # (B, Hkv, Tq, Tk)
        rows, heads, slots = layers[module.layer_idx].masked or ([], [], [])
        unseen[rows, heads, :, slots] = True
        lowest = torch.finfo(hidden.dtype).min
        mask = hidden.new_zeros(unseen.shape).masked_fill(unseen, lowest)
        groups = model.config.num_attention_heads // keys.shape[1]
        return args, kwargs | {"attention_mask": mask.repeat_interleave(groups, dim=1)}

    with ExitStack() as undo:
        if any(layer.masked is not None for layer in layers):
            for module in attention_modules(model):
                undo.callback(module.register_forward_pre_hook(hide, with_kwargs=True).remove)
        yield
