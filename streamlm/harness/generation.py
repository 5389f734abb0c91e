"""Generation arguments of lm-evaluation-harness, and the texts that they ask for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from streamlm.config import StreamConfig
from streamlm.generate.sampling import Sampler, Sampling, Writing

MAX_NEW_TOKENS = 256  # as `hf` has it, where a task does not say
DRAWN_BY = ("temperature", "top_p", "top_k", "repetition_penalty")


class Generation(NamedTuple):
    """What one request asks for."""

    sampling: Sampling
    max_new_tokens: int
    until: list[str]  # texts that end the answer, and are no part of it

    @classmethod
    def parse(cls, arguments: dict[str, Any]) -> "Generation":
        """Return what `arguments` of a request ask for; without do_sample or a temperature it is greedy.

        Raises:
            ValueError: if one is unknown or out of range.
        """
        given = normalize_gen_kwargs(arguments, MAX_NEW_TOKENS)
        until, max_new_tokens = given.pop("until"), given.pop("max_gen_toks")
        if max_new_tokens < 1:
            raise ValueError(f"max_gen_toks must be at least 1, got {max_new_tokens}")
        is_drawn = given.pop("do_sample")
        if given.get("num_beams") == 1:  # no beams, as some tasks say
            del given["num_beams"]
        if unknown := sorted(set(given) - {*DRAWN_BY}):
            raise ValueError(
                f"--model streamlm does not have the generation argument {unknown[0]}; it has until, "
                f"max_gen_toks, do_sample, {', '.join(DRAWN_BY)}"
            )
        # From torch's generator, which lm_eval seeds: repeated samples of one request differ.
        seed = int(torch.randint(2**31, ())) if is_drawn else 0
        settings = {"temperature": 0.0, "top_p": 1.0, **given, "seed": seed}
        return cls(Sampling(**settings), max_new_tokens, [text for text in until if text])

    def writing(self, tokenizer: Any, cfg: StreamConfig, stop_ids: set[int]) -> Writing:
        """Return the writing of an answer, in a cache of this geometry."""
        added = tokenizer.get_added_vocab()  # special tokens, which the text of an answer does not show
        return Writing(
            tokenizer,
            Sampler(self.sampling, cfg),
            max_new_tokens=self.max_new_tokens,
            stop_ids=stop_ids | {added[text] for text in self.until if text in added},
            stop_texts=self.until,
        )

    def answer(self, tokenizer: Any, tokens: Sequence[int]) -> str:
        """Return the text of tokens up to the first of the texts that end it."""
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in self.until:
            text = text.partition(stop)[0]
        return text
