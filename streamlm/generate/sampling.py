"""Text written by a prepared model, token by token, in a cache of constant size."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.limits import (
    BATCH_TOKENS,
    MAX_PENALTY,
    MAX_TEMPERATURE,
    MIN_PENALTY,
    MIN_TEMPERATURE,
    MIN_TOP_P,
    SEED,
    TOKENS,
)
from streamlm.measure.scoring import CHUNK, check_vocabulary, vocab_size

HALF = "\ufffd"  # what a decoder makes of the first bytes of a character


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Raises:
        ValueError: if a number is out of range.
    """

    temperature: float  # 0 takes the likeliest token
    top_p: float  # draw from the likeliest tokens that together have this probability
    seed: int
    top_k: int = 0  # draw from so many likeliest tokens; 0 from all
    repetition_penalty: float = 1.0  # above 1 makes tokens in the cache less likely; 1 leaves them

    def __post_init__(self) -> None:
        for name, low, high, neutral in (
            ("temperature", MIN_TEMPERATURE, MAX_TEMPERATURE, "0 takes the likeliest token"),
            ("top_p", MIN_TOP_P, 1, "1 draws from all tokens"),
            ("top_k", 0, TOKENS, "0 draws from all tokens"),
            ("repetition_penalty", MIN_PENALTY, MAX_PENALTY, "1 penalises nothing"),
            ("seed", -SEED, SEED, "0 is as good as any"),
        ):
            value = getattr(self, name)
            is_number = type(value) is int or (type(value) is float and name not in ("top_k", "seed"))
            is_greedy = name == "temperature" and value == 0
            if not is_number or not (low <= value <= high or is_greedy):
                raise ValueError(f"{name} must be from {low} to {high}, got {value!r:.40}; {neutral}")


class Sampler:
    """Draws of one stream of text, which the seed determines.

    Args:
        sampling: how tokens are drawn.
        cfg: geometry of the cache that the stream is read into.
        never_penalised: tokens that repetition does not make less likely, such as the end of an answer.
    """

    def __init__(self, sampling: Sampling, cfg: StreamConfig, never_penalised: Collection[int] = ()) -> None:
        self.sampling, self.never_penalised = sampling, set(never_penalised)
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.n_sink = cfg.n_sink
        self.sinks: list[int] = []
        self.window: deque[int] = deque(maxlen=cfg.window_size)

    def read(self, ids: Sequence[int]) -> None:
        """Take note of tokens that are fed to the cache."""
        self.sinks += ids[: self.n_sink - len(self.sinks)]
        self.window.extend(ids)

    def _penalised(self, logits: Tensor) -> Tensor:
        """Return logits (V,) in which the tokens in the cache are less likely.

        Source: Keskar et al., CTRL (arXiv:1909.05858), section 4.1; negative logits are multiplied, as
        transformers does.
        """
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return logits
        repeated = sorted({*self.sinks, *self.window} - self.never_penalised)
        before, logits = logits[repeated], logits.clone()
        logits[repeated] = torch.where(before > 0, before / penalty, before * penalty)
        return logits

    def __call__(self, logits: Tensor) -> int:
        """Return the next token by its logits, (V,)."""
        logits = self._penalised(logits)
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits = logits.cpu().to(wide)
        # Of the differences: a tiny temperature would make every logit infinite.
        chances = torch.softmax((logits - logits.max()) / self.sampling.temperature, dim=0)
        chances, order = chances.sort(descending=True)
        if self.sampling.top_k:
            chances[self.sampling.top_k :] = 0
            chances /= chances.sum()
        chances[chances.cumsum(0) - chances >= self.sampling.top_p] = 0  # the likeliest always stays
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])


class TextStream:
    """Tokens in, whole characters out."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []  # since the last whole character
        self.n_shown = 0  # characters of their text

    def push(self, token: int) -> str:
        """Return the text that the token completes, all but a character of which bytes are still to come."""
        self.ids.append(token)
        text = self._decode(self.ids)
        # Some tokenizers show each of up to three bytes of an unfinished character.
        ready = text[: max(len(text.rstrip(HALF)), len(text) - 3)]
        new = ready[self.n_shown :]
        self.n_shown = max(self.n_shown, len(ready))
        if ready == text:  # one character stays: some tokenizers drop the space of a text's first word
            suffixes = (self.ids[-n:] for n in range(1, 5))
            self.ids = next((ids for ids in suffixes if HALF not in self._decode(ids)), [token])
            self.n_shown = len(self._decode(self.ids))
        return new

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Writing:
    """The text that is written after one prompt.

    Args:
        tokenizer: of the model.
        sampler: draws the tokens.
        max_new_tokens: to write.
        stop_ids: tokens that end the text, and are no part of it.
        stop_texts: likewise; what might be the beginning of one is not shown yet.
    """

    def __init__(
        self,
        tokenizer: Any,
        sampler: Sampler,
        *,
        max_new_tokens: int,
        stop_ids: Collection[int] = (),
        stop_texts: Sequence[str] = (),
    ) -> None:
        self.sampler, self.stream = sampler, TextStream(tokenizer)
        self.max_new_tokens, self.stop_ids, self.stop_texts = max_new_tokens, stop_ids, stop_texts
        self.tokens: list[int] = []
        self.ended_by: str | None = None  # "stop token", "stop text" or "length"
        self.text = ""
        self._pending = ""  # maybe the beginning of a stop text

    def draw(self, logits: Tensor) -> str:
        """Take the next token, from its logits (V,); return the text to show now."""
        token = self.sampler(logits)
        if token in self.stop_ids:
            self.ended_by = "stop token"
            return self._show(self._pending)
        self.tokens.append(token)
        self.sampler.read([token])
        text = self._pending + self.stream.push(token)
        ends = [start for stop in self.stop_texts if (start := text.find(stop)) >= 0]
        if ends:
            self.ended_by = "stop text"
            return self._show(text[: min(ends)])
        if len(self.tokens) >= self.max_new_tokens:
            self.ended_by = "length"
            return self._show(text)
        starts = (stop[:n] for stop in self.stop_texts for n in range(len(stop), 0, -1))
        self._pending = max((start for start in starts if text.endswith(start)), key=len, default="")
        return self._show(text.removesuffix(self._pending))

    def _show(self, text: str) -> str:
        self.text += text
        return text


@torch.inference_mode()
def next_logits(model: PreTrainedModel, cache: SinkCache, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Feed ids (B, T) to the cache; return the logits after the last, (B, V).

    Args:
        model: prepared for `SinkCache`.
        cache: of the stream so far.
        ids: new tokens.
        mask: (B, T), 0 where a row is padded at its left; None if none is.
    """
    given = {"attention_mask": mask, "logits_to_keep": 1, **cache_argument(model, cache)}
    logits: Tensor = model(ids, **given).logits
    return logits[:, -1]


def pass_length(cache: SinkCache, n_rows: int) -> int:
    """Return how many tokens of each of `n_rows` texts one pass reads."""
    return cache.longest_pass(min(CHUNK, max(1, BATCH_TOKENS // n_rows)))


@torch.inference_mode()
def read_prompts(model: PreTrainedModel, cache: SinkCache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Feed prompts to an empty cache, shorter ones padded at their left; return the logits after each.

    Args:
        model: prepared for `SinkCache`.
        cache: empty.
        prompts: token ids of each, at least one.

    Returns:
        (B, V) logits.

    Raises:
        ValueError: if an id is outside the vocabulary.
    """
    check_vocabulary(np.concatenate(prompts), vocab_size(model))
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    is_padded = not bool(mask.all())
    chunk = pass_length(cache, len(prompts))
    for block, visible in zip(ids.split(chunk, 1), mask.split(chunk, 1), strict=True):
        logits = next_logits(model, cache, block, visible if is_padded else None)
    return logits


def continue_prompts(
    model: PreTrainedModel, cache: SinkCache, prompts: Sequence[Sequence[int]], writings: Sequence[Writing]
) -> Iterator[tuple[Writing, str]]:
    """Continue every prompt until its text ends; yield each token's text with the writing it belongs to.

    Args:
        model: prepared for `SinkCache`.
        cache: empty.
        prompts: token ids of each, at least one.
        writings: one for each prompt.
    """
    logits = read_prompts(model, cache, prompts)
    for writing, prompt in zip(writings, prompts, strict=True):
        writing.sampler.read(prompt)
    active = list(writings)
    while True:
        for row, writing in enumerate(active):
            yield writing, writing.draw(logits[row])
        rows = [row for row, writing in enumerate(active) if writing.ended_by is None]
        if not rows:
            return
        if len(rows) < len(active):
            cache.batch_select_indices(torch.tensor(rows))
            active = [active[row] for row in rows]
        last = [[writing.tokens[-1]] for writing in active]
        logits = next_logits(model, cache, torch.tensor(last, device=model.device))


def stop_ids(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """Return the tokens with which the model ends a text."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = ends if isinstance(ends, list) else [ends]
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}
