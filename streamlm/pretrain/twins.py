"""The twins: a model as usual, one with a zero sink in every head, one with a learnable sink token."""

import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from streamlm.records.files import atomic_path

SINK = 256  # the learnable token, after all bytes; in the vocabulary of every twin
ATTENTION_NAME = "streamlm_zero_sink"


@dataclass(frozen=True, kw_only=True)
class TwinShape:
    """How large a twin is.

    Raises:
        ValueError: if the heads do not divide the hidden size into even parts.
    """

    layers: int
    hidden: int
    heads: int
    context_tokens: int  # that it is trained to

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of twice the heads, {2 * self.heads}: rotary "
                "positions rotate pairs"
            )


def new_twin(twin: str, shape: TwinShape, seed: int) -> PreTrainedModel:
    """Return an untrained twin: a Llama that reads bytes, in float32.

    Twins of one seed begin with the same weights.

    Args:
        twin: a name in `config.TWINS`.
        shape: of the model.
        seed: of its weights.
    """
    config = LlamaConfig(
        vocab_size=SINK + 1,
        hidden_size=shape.hidden,
        intermediate_size=8 * shape.hidden // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if twin == "zero_sink":
        AttentionInterface.register(ATTENTION_NAME, zero_sink_attention)
        AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
        model.set_attn_implementation(ATTENTION_NAME)
    return model


def zero_sink_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return causal attention whose softmax has one more in its denominator, (B, T, H, D).

    That is attention to one more key and value, both zero. In the convention of transformers.

    Source: arXiv:2309.17453, section 3.3 ("SoftMax1" as a zero sink).
    """
    key, value = (functional.pad(states, (0, 0, 1, 0)) for states in (key, value))  # (B, H, 1 + T, D)
    n_queries = query.shape[2]
    seen = torch.ones(n_queries, n_queries + 1, dtype=torch.bool, device=query.device).tril(1)
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Texts have no pads, and `zero_sink_attention` hides the future by itself."""


def give_zero_sink(model: PreTrainedModel) -> None:
    """Let a model that is prepared for `SinkCache` attend to a zero sink, as `zero_sink_attention` does."""
    logits = torch.zeros(model.config.num_attention_heads, device=model.device)

    def add_sink(base: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "s_aux": logits}

    model.base_model.register_forward_pre_hook(add_sink, with_kwargs=True)


def write_twin(model: PreTrainedModel, folder: Path | str) -> None:
    """Write a twin as a transformers model folder, whole or not at all."""
    with atomic_path(folder) as made, redirect_stderr(io.StringIO()):  # of a progress bar
        model.save_pretrained(made)
