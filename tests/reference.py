"""Slow, obvious twins of the fast paths. Nothing here imports streamlm's attention, cache or rotation."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache


def rotate(x: Tensor, position: int, inv_freq: Tensor) -> Tensor:
    """Rotate one vector (..., D) to `position`, the 2 x 2 matrices of the RoPE paper written out."""
    half, angles = len(inv_freq), position * inv_freq.double()
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def zero_sink_attention(q, k, v, scaling):
    """Causal attention, one query after another, whose weights are exp(s) / (1 + the sum of all exp(s))."""
    out = torch.zeros_like(q)
    for t in range(q.shape[2]):
        weights = torch.exp(scaling * torch.einsum("bhd,bhkd->bhk", q[:, :, t], k[:, :, : t + 1]))
        weights /= 1 + weights.sum(-1, keepdim=True)
        out[:, :, t] = torch.einsum("bhk,bhkd->bhd", weights, v[:, :, : t + 1])
    return out


class Evicting:
    """The policy as in the paper: unrotated keys in a list, positions are indices into that list."""

    def __init__(self, n_sink: int, window_size: int) -> None:
        self.n_sink, self.window_size = n_sink, window_size
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.tokens: list[int] = []  # of which they are
        self.seen: list[dict[int, Tensor]] = []  # of every step: weights (Hq,) by token

    def step(self, q: Tensor, k: Tensor, v: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
        """Attend with one token's unrotated q (Hq, D) over the cache that k, v (Hkv, D) join."""
        self.kept.append((k, v))
        self.tokens.append(len(self.seen))
        if len(self.kept) > self.n_sink + self.window_size:
            del self.kept[self.n_sink], self.tokens[self.n_sink]
        out, shares = [], []
        for head in range(len(q)):
            shared = head * len(k) // len(q)
            query = rotate(q[head], len(self.kept) - 1, inv_freq)
            keys = [rotate(key[shared], position, inv_freq) for position, (key, _) in enumerate(self.kept)]
            weights = (torch.stack(keys) @ query * scaling).softmax(0)
            shares.append(weights)
            out.append(weights @ torch.stack([value[shared] for _, value in self.kept]))
        self.seen.append(dict(zip(self.tokens, torch.stack(shares, dim=1), strict=True)))
        return torch.stack(out)


def attention(q_raw: Tensor, k_raw: Tensor, v: Tensor, n_sink: int, window_size: int, inv_freq: Tensor):
    """Token-by-token attention of one stream; q_raw (1, Hq, T, D), k_raw and v (1, Hkv, T, D)."""
    cache = Evicting(n_sink, window_size)
    steps = [
        cache.step(q_raw[0, :, t], k_raw[0, :, t], v[0, :, t], inv_freq, q_raw.shape[-1] ** -0.5)
        for t in range(q_raw.shape[2])
    ]
    return torch.stack(steps, dim=1)[None]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One sum for each row of x (N, I) and of the weight (O, I), plus the bias (O,): (N, O)."""
    sums = torch.stack([torch.stack([(row * w).sum() for w in weight]) for row in x])
    return sums if bias is None else sums + bias


def llama_losses(
    model: nn.Module, ids: list[int], n_sink: int, window_size: int, caches: list[Evicting] | None = None
) -> Tensor:
    """Per-token losses in nats of a Llama-layout model decoding `ids` one by one, (N-1,)."""
    base, config = model.model, model.config
    head_dim, inv_freq = config.head_dim, base.rotary_emb.inv_freq.double()
    caches = caches or [Evicting(n_sink, window_size) for _ in base.layers]
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
        losses.append(-model.get_output_embeddings()(base.norm(x)).log_softmax(-1)[target])
    return torch.stack(losses)


def neox_losses(
    model: nn.Module, ids: list[int], n_sink: int, window_size: int, caches: list[Evicting] | None = None
) -> Tensor:
    """Per-token losses in nats of a GPT-NeoX model decoding `ids` one by one, (N-1,)."""
    base, config = model.gpt_neox, model.config
    n_heads, inv_freq = config.num_attention_heads, base.rotary_emb.inv_freq.double()
    head_dim = config.hidden_size // n_heads
    caches = caches or [Evicting(n_sink, window_size) for _ in base.layers]
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
        losses.append(-model.get_output_embeddings()(base.final_layer_norm(x)).log_softmax(-1)[target])
    return torch.stack(losses)


class NaiveCache(Cache):
    """The policy on any rotary model's own code, one token at a time: unrotated keys, in lists.

    The model must be given position_ids = p(t), the query's position in the full-attention cache, and attend
    with `naive_attention`. A layer whose own sliding window is not larger keeps that, at true distances.
    """

    def __init__(
        self, windows: list[int | None], n_sink: int, window_size: int, inv_freq: Tensor, pairs: str
    ):
        super().__init__(layers=[])
        self.rules = [
            (n_sink, window_size) if window is None or n_sink + window_size < window else (0, window)
            for window in windows
        ]
        self.kept = [[] for _ in windows]
        self.capacity, self.inv_freq, self.pairs = n_sink + window_size, inv_freq.double(), pairs
        self.n_seen = 0

    @property
    def position(self) -> int:
        """The position of the next query."""
        return min(self.n_seen, self.capacity - 1)

    def rotate(self, x: Tensor, position: int) -> Tensor:
        if self.pairs == "halves":
            return rotate(x, position, self.inv_freq)
        order = torch.cat(
            (torch.arange(0, 2 * len(self.inv_freq), 2), torch.arange(1, 2 * len(self.inv_freq), 2))
        )
        order = torch.cat((order, torch.arange(len(order), x.shape[-1])))
        return rotate(x[..., order], position, self.inv_freq)[..., order.argsort()]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        n_sink, window_size = self.rules[layer_idx]
        kept, position = self.kept[layer_idx], self.position
        kept.append((self.rotate(keys, -position), values))
        if len(kept) > n_sink + window_size:
            del kept[n_sink]
        first = position - (len(kept) - 1)  # 0 in a layer with sinks: the newest key is at the query
        rotated = [self.rotate(key, first + i) for i, (key, _) in enumerate(kept)]
        return torch.cat(rotated, dim=2), torch.cat([value for _, value in kept], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.n_seen


def naive_attention(module, query, key, value, attention_mask, scaling, **_):
    """Softmax attention of one query over every key, in transformers' calling convention."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = (query @ key.transpose(-2, -1) * scaling).softmax(-1)
    return (weights @ value).transpose(1, 2), None


def naive_logits(model, ids: Tensor, windows, n_sink: int, window_size: int, pairs: str = "halves") -> Tensor:
    """Logits (1, T, V) of a rotary model that decodes ids (1, T) one by one under the policy."""
    AttentionInterface.register("naive", naive_attention)
    AttentionMaskInterface.register("naive", lambda *_, **__: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("naive")
    cache = NaiveCache(windows, n_sink, window_size, model.base_model.rotary_emb.inv_freq, pairs)
    logits = []
    for token in ids[0]:
        position = torch.tensor([[cache.position]])
        logits.append(model(token[None, None], position_ids=position, past_key_values=cache).logits)
        cache.n_seen += 1
    model.set_attn_implementation(before)
    return torch.cat(logits, dim=1)


@torch.inference_mode()
def recomputed_losses(model: nn.Module, ids: list[int], positions: list[int], capacity: int) -> Tensor:
    """Losses in nats after some queries, each from a plain pass over its last `capacity` tokens, (M,)."""
    losses = []
    for position in positions:
        seen = torch.tensor([ids[position - capacity + 1 : position + 1]])
        losses.append(-model(seen).logits[0, -1].log_softmax(-1)[ids[position + 1]])
    return torch.stack(losses)


def evict(k_raw: Tensor, v: Tensor, n_sink: int, budget: int, inv_freq: Tensor):
    """What a cache keeps of keys and values (1, Hkv, T, D), its keys rotated to their positions 0, 1, …"""
    n_tokens = k_raw.shape[2]
    kept = [*range(n_sink), *range(n_tokens - budget + n_sink, n_tokens)]
    keys = [rotate(k_raw[:, :, t], position, inv_freq) for position, t in enumerate(kept)]
    return torch.stack(keys, dim=2), v[:, :, kept]


def _of_capacity(losses):
    """A twin (model, ids, n_sink, window_size) from losses that need the capacity alone."""
    return lambda model, ids, n_sink, window_size: losses(model, ids, n_sink + window_size)


@torch.inference_mode()
def recompute_losses_everywhere(model: nn.Module, ids: list[int], capacity: int) -> Tensor:
    """Per-token losses in nats, each from a plain pass over the last `capacity` tokens, (N-1,)."""
    losses = [
        -model(torch.tensor([ids[max(0, t + 1 - capacity) : t + 1]]))
        .logits[0, -1]
        .log_softmax(-1)[ids[t + 1]]
        for t in range(len(ids) - 1)
    ]
    return torch.stack(losses)


@torch.inference_mode()
def masked_losses(model: nn.Module, ids: list[int], n_sink: int, window_size: int) -> Tensor:
    """Per-token losses in nats of one plain pass with true positions, in which a mask hides keys, (N-1,)."""
    seen = [
        [j <= t and (j < n_sink or t - j < window_size) for j in range(len(ids))] for t in range(len(ids))
    ]
    mask = torch.where(torch.tensor(seen), 0.0, -torch.inf).to(model.dtype)[None, None]
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # eager rounds to float32
    logits = model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0]
    model.set_attn_implementation(before)
    return -logits[:-1].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]


# The slow twin of every method, by name: losses (N-1,) of a Llama under the geometry that was asked.
TWINS = {
    "dense": lambda model, ids, n_sink, window_size: llama_losses(model, ids, 0, len(ids)),
    "window": _of_capacity(lambda model, ids, capacity: llama_losses(model, ids, 0, capacity)),
    "recompute": _of_capacity(recompute_losses_everywhere),
    "streaming": llama_losses,
    "text_positions": masked_losses,
}
