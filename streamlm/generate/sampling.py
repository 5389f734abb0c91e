"""Text written by a prepared model, token by token, in a cache of constant size."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.sink_cache import SinkCache
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

    def __post_init__(self) -> None:
        if not self.temperature >= 0:  # nor what is no number
            raise ValueError(f"temperature must be >= 0, got {self.temperature}; 0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p must be above 0 and at most 1, got {self.top_p}; 1 draws from all tokens"
            )


class Sampler:
    """Draws of one stream of text, which the seed determines."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """Return the next token by its logits, (V,)."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits = logits.cpu().to(wide)
        # Of the differences: a tiny temperature would make every logit infinite.
        chances = torch.softmax((logits - logits.max()) / self.sampling.temperature, dim=0)
        chances, order = chances.sort(descending=True)
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


def _read_prompts(model: PreTrainedModel, cache: SinkCache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Feed prompts to an empty cache, shorter ones padded at their left; return the logits after each."""
    check_vocabulary(np.concatenate(prompts), vocab_size(model))
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    is_padded = not bool(mask.all())
    chunk = cache.longest_pass(CHUNK)
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
    logits = _read_prompts(model, cache, prompts)
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
