"""Load a causal language model and prepare it for `SinkCache`."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel

from streamlm.attention import StreamPlan, attend
from streamlm.cache import SinkCache

ATTENTION_NAME = "streamlm"


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    stream_plan: StreamPlan | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention of a prepared model, (B, Tq, Hq, D), in transformers' calling convention."""
    if stream_plan is None:
        # Without a plan nothing here would hide the future.
        raise ValueError("a prepared model needs a SinkCache as past_key_values")
    return attend(query, key, value, stream_plan, scaling).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The plan hides what a query must not see; a T x T mask would cost memory that grows with the stream."""


def _plan_forward(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], *, inv_freq: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SinkCache):
        return None
    tokens = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    mask = kwargs.get("attention_mask")
    if mask is not None and not bool(torch.as_tensor(mask).all()):
        raise ValueError("SinkCache does not take padded batches yet; give it rows of equal length")
    step = cache.begin(tokens.shape[1], inv_freq, torch.promote_types(model.dtype, torch.float32))
    return args, {
        **kwargs,
        "attention_mask": None,
        "position_ids": step.position_ids,
        "stream_plan": step.attention,
    }


LENGTH_INDEPENDENT = ("default", "linear", "llama3", "yarn")
SUPPORTED = (
    "supported are models with one rotary embedding of fixed frequencies "
    f"(rope types {', '.join(LENGTH_INDEPENDENT)}) and full attention in every layer, "
    "such as Llama, Mistral without its window, Qwen2, Qwen3, Phi-3 and GPT-NeoX / Pythia"
)


def rotary_frequencies(model: PreTrainedModel) -> Tensor:
    """Return the model's rotary inverse frequencies, (R,) in rad per position.

    Raises:
        ValueError: if its positions are not rotary, or change with the length of the stream.
    """
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    rotary = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), Tensor)]
    if len(rotary) != 1:
        raise ValueError(f"{name} has {len(rotary)} rotary embeddings, not 1; {SUPPORTED}")
    rope_type = getattr(rotary[0], "rope_type", "default")
    if rope_type not in LENGTH_INDEPENDENT:
        raise ValueError(f"{name} has rope type {rope_type!r}, which follows the length; {SUPPORTED}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        raise ValueError(f"{name} has layers that are not full attention; {SUPPORTED}")
    inv_freq: Tensor = rotary[0].inv_freq
    return inv_freq


def _switch(model: PreTrainedModel) -> Callable[[], None]:
    inv_freq = rotary_frequencies(model)
    AttentionInterface.register(ATTENTION_NAME, attention_forward)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
    before = model.config._attn_implementation
    hook = model.base_model.register_forward_pre_hook(
        partial(_plan_forward, inv_freq=inv_freq), with_kwargs=True
    )

    def undo() -> None:
        hook.remove()
        model.set_attn_implementation(before)

    try:
        plain = _probe_plain(model)
        model.set_attn_implementation(ATTENTION_NAME)
        _probe_stream(model, plain)
    except BaseException:
        undo()
        raise
    return undo


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
    undo = _switch(model)
    try:
        yield model
    finally:
        undo()


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
            f"the files are damaged, or {model.dtype} is too narrow for this model"
        )
    return logits


@torch.inference_mode()
def _probe_stream(model: PreTrainedModel, plain: Tensor) -> None:
    """Refuse a model for which our attention, our rotation or a plain head would silently be wrong."""
    ids = _probe_ids(model)

    def stream(chunk: int, **geometry: int) -> Tensor:
        cache = SinkCache(model.config, **geometry)
        hidden = [
            model.base_model(part, past_key_values=cache).last_hidden_state for part in ids.split(chunk, 1)
        ]
        logits: Tensor = model.get_output_embeddings()(torch.cat(hidden, dim=1))
        return logits

    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.1
    dense = stream(PROBE_TOKENS, n_sink=2, window_size=PROBE_TOKENS)
    once = stream(PROBE_TOKENS, n_sink=2, window_size=4)
    rebased = stream(4, n_sink=2, window_size=4, position_limit=0)
    for ours, theirs, what in (
        (dense, plain, "its attention or its head has parts that are not known here"),
        (rebased, once, "it rotates queries and keys in a way that is not known here"),
    ):
        if (ours - theirs).norm() > tolerance * theirs.norm():
            raise ValueError(f"{type(model).__name__} cannot be scored exactly: {what}; {SUPPORTED}")


def load_model(folder: Path | str, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the causal language model in `folder`, prepared for `SinkCache`.

    Args:
        folder: a transformers model folder with safetensors weights.
        dtype: of the weights.
        device: a torch device name.

    Raises:
        ValueError: if the folder holds no such model, or the model is not supported (see `prepare`).
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    try:
        with redirect_stderr(io.StringIO()):  # a bar per tensor, which fills log files
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the model in {folder} cannot be read: {str(error).splitlines()[0]}") from error
    model = model.to(device).eval()
    _switch(model)
    return model


def model_title(model: PreTrainedModel) -> str:
    """Return the true name of a model: what its conversion noted, or else its folder's name."""
    return getattr(model.config, "streamlm_title", None) or Path(model.config._name_or_path).name


def parse_dtype(name: str) -> torch.dtype:
    """Return the torch floating-point type called `name`."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"unknown dtype {name!r}; use float32, bfloat16, float16 or float64")
    return dtype


def choose_device(name: str) -> str:
    """Return the torch device called `name`; "auto" is CUDA when present, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def device_name(device: str) -> str:
    """Return the device and, for a GPU, its model."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device
