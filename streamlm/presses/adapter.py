"""Run kvpress on a model: with exact budgets, on GPT-NeoX as well, and in a way that equals the paper.

Importing kvpress changes transformers' attention functions for the whole process, so only functions here
import it, and only processes of their own call them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from streamlm.cache.supported import layer_windows
from streamlm.presses.grammar import Press

# Of kvpress's own list, the models that are one text decoder with full attention; and GPT-NeoX.
FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gpt_neox")

Hook = Callable[[nn.Module, Any, dict[str, Any], Any], Any]
Layer = tuple[Tensor, Tensor]  # keys and values, (B, Hkv, T, D)


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


def make_decoding_press(press: Press, model: PreTrainedModel, target: int, interval: int) -> Any:
    """Return kvpress's DecodingPress over `press`: every `interval` tokens it cuts the cache to `target`.

    It is built over the press that scores and then gets the wrapping one: its constructor refuses
    KeyRerotationPress, although it works with it.
    """
    import kvpress

    made = kvpress.DecodingPress(
        make_press(press.inner or press), compression_interval=interval, target_size=target
    )
    made.base_press = make_press(press)
    made.post_init_from_model(model)
    return made


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
    kept = keys.gather(2, indices[..., None].expand(-1, -1, -1, keys.shape[-1]))
    rotary, other = kept.tensor_split([2 * len(inv_freq)], dim=-1)
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


def check_budget(cache: Any, budget: int) -> None:
    """Raise ValueError unless every layer of a cache holds exactly `budget` tokens."""
    counts = [layer.keys.shape[2] for layer in cache.layers]
    if set(counts) != {budget}:
        raise ValueError(f"layers hold {min(counts)} to {max(counts)} tokens where the budget is {budget}")


def filled_cache(model: PreTrainedModel, layers: list[Layer]) -> DynamicCache:
    """Return a `DynamicCache` with these keys and values."""
    cache = DynamicCache(config=model.config)
    for i, (keys, values) in enumerate(layers):
        cache.update(keys, values, i)
    return cache
