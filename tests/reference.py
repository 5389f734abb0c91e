"""Slow, obvious twins of the fast paths. Nothing here imports streamlm's attention, cache or rotation."""

from itertools import pairwise

import torch
from torch import Tensor, nn


def turn(x: Tensor, position: int, inv_freq: Tensor) -> Tensor:
    """Rotate one vector (..., D) to `position`, the 2 x 2 matrices of the RoPE paper written out."""
    half, angles = len(inv_freq), position * inv_freq.double()
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


class Evicting:
    """The policy as the paper tells it: unrotated keys in a list, positions are places in that list."""

    def __init__(self, n_sink: int, window_size: int) -> None:
        self.n_sink, self.window_size = n_sink, window_size
        self.held: list[tuple[Tensor, Tensor]] = []

    def step(self, q: Tensor, k: Tensor, v: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
        """Attend with one token's unrotated q (Hq, D) over the cache that k, v (Hkv, D) join."""
        self.held.append((k, v))
        if len(self.held) > self.n_sink + self.window_size:
            del self.held[self.n_sink]
        out = []
        for head in range(len(q)):
            shared = head * len(k) // len(q)
            query = turn(q[head], len(self.held) - 1, inv_freq)
            keys = [turn(key[shared], place, inv_freq) for place, (key, _) in enumerate(self.held)]
            weights = (torch.stack(keys) @ query * scaling).softmax(0)
            out.append(weights @ torch.stack([value[shared] for _, value in self.held]))
        return torch.stack(out)


def attention(q_raw: Tensor, k_raw: Tensor, v: Tensor, n_sink: int, window_size: int, inv_freq: Tensor):
    """Token-by-token attention of one stream; q_raw (1, Hq, T, D), k_raw and v (1, Hkv, T, D)."""
    cache = Evicting(n_sink, window_size)
    steps = [
        cache.step(q_raw[0, :, t], k_raw[0, :, t], v[0, :, t], inv_freq, q_raw.shape[-1] ** -0.5)
        for t in range(q_raw.shape[2])
    ]
    return torch.stack(steps, dim=1)[None]


def llama_losses(model: nn.Module, ids: list[int], n_sink: int, window_size: int) -> Tensor:
    """Per-token losses in nats of a Llama-layout model decoding `ids` one by one, (N-1,)."""
    base, config = model.model, model.config
    head_dim, inv_freq = config.head_dim, base.rotary_emb.inv_freq.double()
    caches = [Evicting(n_sink, window_size) for _ in base.layers]
    losses = []
    for token, target in pairwise(ids):
        x = base.embed_tokens.weight[token]
        for layer, cache in zip(base.layers, caches, strict=True):
            h = layer.input_layernorm(x)
            q, k, v = (
                project(h).view(-1, head_dim)
                for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            seen = cache.step(q, k, v, inv_freq, head_dim**-0.5)
            x = x + layer.self_attn.o_proj(seen.flatten())
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        losses.append(-model.lm_head(base.norm(x)).log_softmax(-1)[target])
    return torch.stack(losses)


def neox_losses(model: nn.Module, ids: list[int], n_sink: int, window_size: int) -> Tensor:
    """Per-token losses in nats of a GPT-NeoX model decoding `ids` one by one, (N-1,)."""
    base, config = model.gpt_neox, model.config
    n_heads, inv_freq = config.num_attention_heads, base.rotary_emb.inv_freq.double()
    head_dim = config.hidden_size // n_heads
    caches = [Evicting(n_sink, window_size) for _ in base.layers]
    losses = []
    for token, target in pairwise(ids):
        x = base.embed_in.weight[token]
        for layer, cache in zip(base.layers, caches, strict=True):
            fused = layer.attention.query_key_value(layer.input_layernorm(x)).view(n_heads, 3, head_dim)
            seen = cache.step(fused[:, 0], fused[:, 1], fused[:, 2], inv_freq, head_dim**-0.5)
            attended = x + layer.attention.dense(seen.flatten())
            if config.use_parallel_residual:
                x = attended + layer.mlp(layer.post_attention_layernorm(x))
            else:
                x = attended + layer.mlp(layer.post_attention_layernorm(attended))
        losses.append(-model.embed_out(base.final_layer_norm(x)).log_softmax(-1)[target])
    return torch.stack(losses)
