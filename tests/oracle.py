"""The definition on the code of any decoder, one token at a time; it knows nothing of rotary embeddings.

Of every token the output of each attention is kept. With these outputs given back to it, the model computes
the same hidden states of that token again at any position, and with them the keys that it has there. So a
query meets the keys of the tokens that it sees at their positions in the cache, whatever the model does with
a position: rotate all features or some, by halves or pairs, with one set of frequencies or several, or not at
all; scale queries by it. Layers with a state of fixed size keep it in a cache of transformers; their outputs
are kept and given back likewise.
"""

import inspect
from collections import Counter
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

NAME = "oracle"


class Oracle:
    """A decoder without a cache.

    Args:
        model: as transformers has it.
        windows: of each layer that attends, its own window or None.
        n_sink, window_size: what is asked.
    """

    def __init__(self, model, windows: dict[int, int | None], n_sink: int, window_size: int) -> None:
        self.model, self.capacity = model, n_sink + window_size
        self.rules = {
            i: (n_sink, window_size) if own is None or self.capacity < own else (0, own)
            for i, own in windows.items()
        }
        self.tokens: list[int] = []
        self.outputs: list[
            dict[tuple[int, int], Tensor]
        ] = []  # of each token, by layer and call: (1, 1, Hq, Dv)
        self.values: list[dict[tuple[int, int], Tensor]] = []  # (1, Hkv, 1, Dv)
        layers = getattr(model.base_model, "layers", [])
        self.stateful = {i: layer for i, layer in enumerate(layers) if i not in windows}
        self.hidden: list[dict[int, Tensor]] = []  # of each token, after the layers with a state, (1, 1, H)
        self.states = States(config=model.config) if self.stateful else None

    def _run(self, ids: list[int], positions: list[int], attention, states=None) -> Tensor:
        """Feed tokens that know nothing of each other, one in a row of the batch."""
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        at = torch.tensor(positions)[:, None]
        given = {"cache_position": at[0]} if len(ids) == 1 else {}
        if states is not None:
            given |= {"cache": states}
        return self.model(
            torch.tensor(ids)[:, None],
            position_ids=at,
            use_cache=states is not None,
            **self._known(given),
        ).logits

    def _known(self, given):
        names = inspect.signature(self.model.base_model.forward).parameters
        return {name: value for name, value in given.items() if name in names}

    def _keys(self, tokens: list[int], positions: list[int]) -> dict[tuple[int, int], Tensor]:
        """Return the keys (1, Hkv, n, D) of earlier tokens at these positions, by layer and call."""
        keys, calls = {}, Counter()

        def replay(module, query, key, value, attention_mask, **_):
            call = _next(calls, module)
            keys[call] = key.transpose(0, 2)
            return torch.cat([self.outputs[t][call] for t in tokens]), None

        if tokens:
            with self._given_back(tokens):
                self._run([self.tokens[t] for t in tokens], positions, replay)
        return keys

    @contextmanager
    def _given_back(self, tokens: list[int]):
        """Let the layers with a state return what they returned for these tokens."""
        for i, layer in self.stateful.items():
            hidden = torch.cat([self.hidden[t][i] for t in tokens])
            layer.forward = lambda *_, hidden=hidden, **__: hidden
        try:
            yield
        finally:
            for layer in self.stateful.values():
                del layer.forward

    def step(self, token: int) -> Tensor:
        """Return the logits (V,) after one more token."""
        now, place = len(self.tokens), min(len(self.tokens), self.capacity - 1)
        outputs, values, calls = {}, {}, Counter()
        self.values.append(values)
        seen, past = {}, {}
        for n_sink, window_size in set(self.rules.values()):
            visible = [t for t in range(now) if t < n_sink or now - t < window_size]
            at = [t if t < n_sink else place - (now - t) for t in visible]
            seen[n_sink, window_size] = visible
            past[n_sink, window_size] = self._keys(visible, at)

        def attend(module, query, key, value, attention_mask, scaling, softcap=None, s_aux=None, **_):
            call, rule = _next(calls, module), self.rules[module.layer_idx]
            values[call] = value
            keys = torch.cat([past[rule][call], key], dim=2) if seen[rule] else key
            held = torch.cat([*(self.values[t][call] for t in seen[rule]), value], dim=2)
            heads = []
            for head in range(query.shape[1]):
                shared = head * keys.shape[1] // query.shape[1]
                scores = (keys[0, shared] @ query[0, head, 0]) * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if s_aux is not None:
                    scores = torch.cat([scores, s_aux[head : head + 1].to(scores.dtype)])
                weights = scores.softmax(0, dtype=torch.promote_types(scores.dtype, torch.float32))
                of_value = head * held.shape[1] // query.shape[1]
                heads.append(weights[: held.shape[2]].to(held.dtype) @ held[0, of_value])
            outputs[call] = torch.stack(heads)[None, None]
            return outputs[call], None

        hidden: dict[int, Tensor] = {}
        with ExitStack() as undo:
            for i, layer in self.stateful.items():
                keep = layer.register_forward_hook(lambda _, args, out, i=i: hidden.update({i: out}))
                undo.callback(keep.remove)
            logits = self._run([token], [place], attend, self.states)[0, -1]
        self.hidden.append(hidden)
        self.tokens.append(token)
        self.outputs.append(outputs)
        return logits


class States(DynamicCache):
    """A cache of states of fixed size; of keys and values it keeps nothing."""

    def update(self, key_states, value_states, *_, **__):
        return key_states, value_states


def _next(calls: Counter, module) -> tuple[int, int]:
    """Return layer and number of a call: some layers attend twice in one pass."""
    calls[module.layer_idx] += 1
    return module.layer_idx, calls[module.layer_idx]


@torch.inference_mode()
def oracle_logits(model, ids: Tensor, windows, n_sink: int, window_size: int) -> Tensor:
    """Return the logits (T, V) of a decoder that reads ids (T,) one by one under the policy."""
    before = model.config._attn_implementation
    AttentionInterface.register(NAME, lambda *_, **__: None)
    model.set_attn_implementation(NAME)
    try:
        oracle = Oracle(model, windows, n_sink, window_size)
        return torch.stack([oracle.step(int(token)) for token in ids])
    finally:
        model.set_attn_implementation(before)
