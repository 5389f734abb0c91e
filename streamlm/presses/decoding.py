"""Decoding at a fixed budget: streamlm, kvpress as it is, and kvpress used so that it equals the paper."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.measure.device import now
from streamlm.measure.memory import held_bytes
from streamlm.presses.adapter import attached, make_decoding_press
from streamlm.presses.agreement import Agreement, compare_hidden, stack_scores
from streamlm.presses.grammar import STREAMLM, Press, check_budgets
from streamlm.presses.setting import Setting, Sizes, name_text, open_setting, step
from streamlm.records.types import Record

PROTOCOL = "streaming decode: a prompt fills all but one entry, then every token is decoded by itself"
TURN_TOKENS = 40  # tokens that one method decodes before the next takes over
ROUNDS = 20  # of eviction, after which the survivors are reported


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(Sizes):
    """What is decoded."""

    capacity: int  # entries that a query sees, its own included
    tokens: int  # decoded after a prompt of capacity - 1
    interval: int  # tokens between two evictions of kvpress as it is

    @property
    def n_ids(self) -> int:
        """Token ids used; the last is only predicted."""
        return self.capacity + self.tokens


@dataclass
class Survivors:
    """How many sinks and recent tokens the first layer holds after every round of eviction."""

    n_sink: int
    target: int  # tokens kept in a round
    interval: int  # tokens between two rounds
    positions: Tensor | None = None  # (Hkv, n_held) of the kept tokens in the text
    n_seen: int = 0
    sinks: list[float] = field(default_factory=list)  # mean over the heads, of n_sink
    recent: list[float] = field(default_factory=list)  # mean over the heads, of target - n_sink

    def watch(self, press: Any) -> None:
        """Follow what `press` keeps, and raise ValueError where a layer keeps another number than `target`.

        In the first layer it is called twice, the first time with positions instead of values.
        """
        compress = press.compress

        def call(module: Any, hidden: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Any:
            if module.layer_idx == 0:
                positions = self._all_positions(keys)[None, :, :, None].expand_as(values)
                self._note(compress(module, hidden, keys, positions, *rest)[1][0, :, :, 0])
            kept = compress(module, hidden, keys, values, *rest)
            if kept[0].shape[2] != self.target:
                raise ValueError(f"kvpress keeps {kept[0].shape[2]} tokens where the budget is {self.target}")
            return kept

        press.compress = call

    def _all_positions(self, keys: Tensor) -> Tensor:
        """Return the positions (Hkv, T) of keys (1, Hkv, T, D): those kept before, and the new ones."""
        n_heads, n_held = keys.shape[1:3]
        old = self.positions
        if old is None:
            old = torch.empty(n_heads, 0, dtype=torch.int64, device=keys.device)
        new = self.n_seen + torch.arange(n_held - old.shape[1], device=keys.device)
        self.n_seen += len(new)
        return torch.cat((old, new.expand(n_heads, -1)), dim=1)

    def _note(self, kept: Tensor) -> None:
        self.positions = kept
        n_recent = self.target - self.n_sink
        self.sinks.append(float((kept < self.n_sink).sum(-1).float().mean()))
        self.recent.append(float((kept >= self.n_seen - n_recent).sum(-1).float().mean()))

    def describe(self) -> dict[str, Any]:
        """Return the numbers after every round, and after `ROUNDS` of them."""
        after = min(ROUNDS, len(self.sinks))
        return {
            "interval": self.interval,
            "sinks": self.sinks,
            "recent": self.recent,
            "after_rounds": after,
            "sinks_after": self.sinks[after - 1] if after else None,
            "recent_after": self.recent[after - 1] if after else None,
        }


@dataclass
class DecodingRun:
    """One way to decode, and what it has given so far."""

    cache: Cache
    around: Callable[[], AbstractContextManager[Any]]  # in force while it decodes
    in_text: bool = False  # whether tokens have their positions in the text; else the cache decides
    survivors: Survivors | None = None
    prefill_sec: float = 0.0
    hidden: list[Tensor] = field(default_factory=list)  # (1, H) of every token
    step_ms: list[float] = field(default_factory=list)
    kv_bytes: int = 0  # the largest after a step


@torch.inference_mode()
def measure_decoding(setting: Setting, *, n_sink: int, decode: DecodeConfig) -> tuple[Record, np.ndarray]:
    """Decode each text by every method in turns; return the record and the scores.

    With R = capacity - n_sink - 1 recent tokens kept after a step, the methods are ``dense``; ``streamlm``,
    `window_size` = R + 1; ``kvpress_faithful``, DecodingPress over KeyRerotationPress over
    StreamingLLMPress after every token; ``kvpress_every_1`` and ``kvpress_every_{interval}``,
    DecodingPress over StreamingLLMPress as kvpress has it, tokens at their positions in the text; and
    ``kvpress_in_order_every_{interval}``, the same with the entries in the order of the text.

    Args:
        setting: model and texts.
        n_sink: first tokens kept.
        decode: how much is held and decoded.

    Returns:
        the record, with an entry in `texts` for each and in it `methods` in the order above; float32 losses,
        and divergences from dense, both in nats: (2, texts, methods, tokens).

    Raises:
        ValueError: for any mistake in the above.
    """
    check_budgets([decode.capacity - 1], n_sink, decode.n_ids)
    opened = open_setting(setting, module=__file__, n_ids=decode.n_ids)
    entries, scores = [], []
    for dataset, ids in opened.texts.items():
        runs = open_runs(opened.model, n_sink, decode)
        agreements = decode_in_turns(opened.model, runs, ids, decode.capacity - 1)
        methods = {
            label: {
                **agreement.describe(setting.bootstrap),
                **_describe_cost(runs[label], runs[STREAMLM]),
            }
            for label, agreement in agreements.items()
        }
        entries.append({**name_text(dataset, ids), "methods": methods})
        scores.append([agreement.scores for agreement in agreements.values()])
    record = {
        **opened.record,
        "n_sink": n_sink,
        "protocol": PROTOCOL,
        "decoded": asdict(decode) | {"prompt_tokens": decode.capacity - 1, "turn_tokens": TURN_TOKENS},
        "texts": entries,
    }
    return record, stack_scores(scores)


def open_runs(model: PreTrainedModel, n_sink: int, decode: DecodeConfig) -> dict[str, DecodingRun]:
    """Return every method with an empty cache, by label."""
    scorer = Press("StreamingLLMPress", {"n_sink": n_sink})
    faithful = Press("KeyRerotationPress", inner=scorer)
    target = decode.capacity - 1

    def pressed(press: Press, interval: int, *, in_order: bool = False) -> DecodingRun:
        made = make_decoding_press(press, model, target, interval, in_order=in_order)
        survivors = Survivors(n_sink, target, interval)
        survivors.watch(made)
        around = partial(attached, made.forward_hook, model)
        return DecodingRun(DynamicCache(config=model.config), around, press is scorer, survivors)

    sinks = SinkCache(model.config, n_sink=n_sink, window_size=decode.capacity - n_sink)
    return {
        "dense": DecodingRun(DynamicCache(config=model.config), nullcontext),
        STREAMLM: DecodingRun(sinks, partial(prepare, model)),
        "kvpress_faithful": pressed(faithful, 1),
        **{
            f"kvpress_every_{interval}": pressed(scorer, interval)
            for interval in dict.fromkeys((1, decode.interval))
        },
        f"kvpress_in_order_every_{decode.interval}": pressed(scorer, decode.interval, in_order=True),
    }


def decode_in_turns(
    model: PreTrainedModel, runs: dict[str, DecodingRun], ids: Tensor, n_prompt: int
) -> dict[str, Agreement]:
    """Feed ids (N,) to every run, the first `n_prompt` in one pass, then one by one.

    Return how each agrees with the dense one; the last id is only predicted. The runs take turns, so
    that a busy machine meets all of them.
    """
    model.base_model(ids[None, :n_prompt])  # a first pass is slower
    for run in runs.values():
        with run.around():
            begin = now(ids.device)
            model.base_model(ids[None, :n_prompt], past_key_values=run.cache)
            run.prefill_sec = now(ids.device) - begin
    for first in range(n_prompt, len(ids) - 1, TURN_TOKENS):
        for run in runs.values():
            with run.around():
                for t in range(first, min(first + TURN_TOKENS, len(ids) - 1)):
                    position = t if run.in_text else None
                    state, step_ms = step(model, ids[None, t : t + 1], run.cache, position)
                    run.hidden.append(state)
                    run.step_ms.append(step_ms)
                    run.kv_bytes = max(run.kv_bytes, held_bytes(run.cache))
    hidden = [torch.cat(run.hidden) for run in runs.values()]
    agreements = compare_hidden(model.get_output_embeddings(), hidden, ids[n_prompt + 1 :])
    return dict(zip(runs, agreements, strict=True))


def _describe_cost(run: DecodingRun, ours: DecodingRun) -> dict[str, Any]:
    """Return times, memory and survivors; ratios are those of the medians of a turn to ours in it."""
    ends = range(TURN_TOKENS, len(run.step_ms), TURN_TOKENS)
    medians, our_medians = (
        [np.median(turn) for turn in np.split(np.array(times), ends)] for times in (run.step_ms, ours.step_ms)
    )
    ratios = np.divide(medians, our_medians)
    return {
        "prefill_sec": run.prefill_sec,
        "step_ms": float(np.median(run.step_ms)),
        "step_ms_p95": float(np.quantile(run.step_ms, 0.95)),
        "step_ratio": float(np.median(ratios)),
        "step_ratio_spread": [float(ratios.min()), float(ratios.max())],
        "kv_bytes": run.kv_bytes,
        "survivors": None if run.survivors is None else run.survivors.describe(),
    }
