"""A conversation of any length over one `SinkCache`: every turn feeds only its new tokens."""

import copy
import hashlib
import json
import signal
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from streamlm.cache.folder import reason_of
from streamlm.cache.saved import model_hash
from streamlm.cache.sink_cache import SinkCache
from streamlm.generate.sampling import Sampler, Sampling, Writing, next_logits, stop_ids
from streamlm.generate.watching import WatchedToken, token_texts, watch_token
from streamlm.limits import TEMPLATE_CHARACTERS, TEMPLATE_REPEATS, TEMPLATE_SECONDS
from streamlm.measure.scoring import CHUNK, check_vocabulary, vocab_size

Message = dict[str, str]  # role and content, as chat templates take them
ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "An answer, 5c1e"}
THOUGHT = {"role": "assistant", "content": "<think>\nA thought, 7d2f\n</think>\n\nAn answer, 5c1e"}
AGAIN = {"role": "user", "content": "Why?"}
MIN_SINKS = 4  # as the paper keeps


class ChatTemplate:
    """The chat template of a tokenizer, turn by turn.

    The token sequence is that of the chat template applied to the whole conversation::

        opening(user)  answer  turn(user)  answer  turn(user) ...

    where an answer is what the model writes, without the token that ends it. Some templates leave thoughts
    out of earlier answers, or begin every answer with one; here a thought stays as it was written.

    Args:
        tokenizer: of the model.
        system: the system prompt; None leaves it to the template.

    Raises:
        ValueError: if there is no template.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; take an instruct model, or "
                "`streamlm generate` for plain text"
            )
        self.start = [] if system is None else [{"role": "system", "content": system}]
        self.past = [*self.start, ASKED, ANSWERED]

    def check_turns(self) -> None:
        """Raise ValueError unless a conversation can be fed turn by turn.

        One that only leaves out thoughts can; see `forgets_thoughts`.
        """
        asked, opening = (self._render([*self.start, ASKED], answer=answer) for answer in (False, True))
        whole = self._render([*self.past, AGAIN])
        before, _, after = whole.partition(ANSWERED["content"])
        # It may begin an answer with a thought, which it leaves out later.
        shortened = before.startswith(asked) and opening.startswith(before)
        if not (before == opening or shortened) or after != self.closing + self._turn(AGAIN["content"]):
            raise ValueError(f"{self._name()} rewrites earlier turns; it cannot be fed turn by turn")
        tokens, begin, end = self._encode(whole), self._encode(before), self.turn(AGAIN["content"])
        if (tokens[: len(begin)], tokens[-len(end) :]) != (begin, end):
            raise ValueError(
                f"{self._name()} gives a whole conversation other tokens than its turns; take another model"
            )

    @property
    def sha256(self) -> str:
        """The hash of the template's code."""
        return hashlib.sha256(json.dumps(self.tokenizer.chat_template).encode()).hexdigest()

    @property
    def forgets_thoughts(self) -> bool:
        """Whether the template leaves thoughts out of earlier answers, which stay in the cache here."""
        return "A thought, 7d2f" not in self._render([*self.start, ASKED, THOUGHT, AGAIN])

    @cached_property
    def closing(self) -> str:
        """What the template writes after an answer."""
        _, found, closing = self._render(self.past, answer=False).rpartition(ANSWERED["content"])
        if not found:
            raise ValueError(f"{self._name()} rewrites answers; it cannot be fed turn by turn")
        return closing

    @property
    def end_ids(self) -> set[int]:
        """The special token with which the template closes an answer; the model's own end may be another."""
        try:
            first = self._encode(self.closing)[:1]
        except ValueError:  # of one turn the model's own end will do
            return set()
        return set(first) & {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}

    def _name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path}"

    def _render(self, messages: list[Message], *, answer: bool = True) -> str:
        try:
            with limited(TEMPLATE_SECONDS):
                text = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=answer
                )
        except Exception as error:  # a template is code, in a sandbox
            raise ValueError(f"{self._name()} refuses the conversation: {reason_of(error)}") from error
        said = sum(len(message["content"]) for message in messages)
        if not isinstance(text, str) or len(text) > TEMPLATE_CHARACTERS + TEMPLATE_REPEATS * said:
            raise ValueError(f"{self._name()} gives more than a conversation; take another model")
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def _turn(self, user: str) -> str:
        """Return the text from after a closed answer to where the next answer begins."""
        whole = self._render([*self.past, {"role": "user", "content": user}])
        _, found, turn = whole.rpartition(ANSWERED["content"] + self.closing)
        if not found:
            raise ValueError(f"{self._name()} rewrites earlier turns; it cannot be fed turn by turn")
        return turn

    def opening(self, user: str) -> list[int]:
        """Return the tokens of the first turn, up to where the answer begins."""
        return self._encode(self._render([*self.start, {"role": "user", "content": user}]))

    def turn(self, user: str) -> list[int]:
        """Return the tokens from the end of an answer to where the next one begins."""
        return self._encode(self.closing + self._turn(user))

    def n_sink(self) -> int:
        """Return how many sinks keep the whole system prompt, at least four.

        Sinks are a stream's first tokens, never evicted: with the system turn among them, the model reads its
        instructions however long the conversation grows.
        """
        whole, turn = self._render([*self.start, ASKED]), self._turn(ASKED["content"])
        system = whole.removesuffix(turn) if whole.endswith(turn) else ""
        if self.start and not system:  # some templates put it into the first turn of the user
            prompt = self.start[0]["content"].strip()
            end = whole.index(prompt) + len(prompt) if prompt in whole else 0  # some leave it out
            system = whole[:end]
        return max(MIN_SINKS, len(self._encode(system)))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer; in the main thread only, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Conversation:
    """Turns over one cache.

    Args:
        model: prepared for `SinkCache`.
        template: of its tokenizer.
        cache: empty, or of a conversation with which to `go_on`.
        sampling: how tokens are drawn.
        max_new_tokens: of an answer.

    Raises:
        ValueError: if the template rewrites earlier turns as the conversation grows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        template: ChatTemplate,
        cache: SinkCache,
        sampling: Sampling,
        max_new_tokens: int,
    ) -> None:
        self.model, self.template, self.cache = model, template, cache
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        template.check_turns()
        self.stop_ids = stop_ids(model, template.tokenizer) | template.end_ids
        self.go_on(template.start)

    def reset(self) -> None:
        """Forget everything that was said."""
        self.cache.reset()
        self.go_on(self.template.start)

    def go_on(self, messages: Sequence[Message], fed: Sequence[int] = (), unread: Sequence[int] = ()) -> None:
        """Stand where a conversation stood; random numbers start from the seed.

        Args:
            messages: what was said.
            fed: token ids of the stream that the cache has read.
            unread: those that come next.
        """
        self.sampler = Sampler(self.sampling, self.cache.cfg, self.stop_ids)
        self.sampler.read([*fed, *unread])
        self.messages: list[Message] = list(messages)
        self.fed = array("q", fed)
        self.unread = list(unread)

    @cached_property
    def model_sha256(self) -> str:
        """The hash of the model, whose weights stay as they are."""
        return model_hash(self.model)

    def ask(self, user: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield the answer to `user`, a piece for each token; the piece may be empty.

        Args:
            user: what is said.
            stopped: asked between two passes; if true, the answer ends where it is. What was not read yet
                is read with the next turn, so that the conversation stays whole.
        """
        has_begun = any(message["role"] == "user" for message in self.messages)
        turn = self.template.turn(user) if has_begun else self.template.opening(user)
        check_vocabulary(np.array(turn), vocab_size(self.model))
        self.unread += turn
        self.sampler.read(turn)
        answer = {"role": "assistant", "content": ""}
        self.messages += [{"role": "user", "content": user}, answer]
        writing = Writing(
            self.template.tokenizer, self.sampler, max_new_tokens=self.max_new_tokens, stop_ids=self.stop_ids
        )
        chunk = self.cache.longest_pass(CHUNK)
        while not stopped():
            block = torch.tensor([self.unread[:chunk]], device=self.model.device)
            logits = next_logits(self.model, self.cache, block)
            self.fed.extend(self.unread[:chunk])
            self.unread = self.unread[chunk:]
            if self.unread:
                continue
            piece = writing.draw(logits[0])
            answer["content"] = writing.text
            if writing.ended_by == "stop token":
                return
            self.unread = writing.tokens[-1:]
            yield piece
            if writing.ended_by is not None:
                return

    def watch(self, n_old: int) -> tuple[WatchedToken, list[str]]:
        """Return where the attention of the token goes that is read next, and the texts of all up to it.

        It is the last one drawn, or the first of what closes an answer. A copy of the cache reads it.

        Args:
            n_old: forgotten tokens that have their text; those between them and the sinks have an empty one.

        Raises:
            ValueError: if nothing was read yet, or the cache has codes of a quantised window on a GPU.
        """
        if not self.fed:
            raise ValueError("nothing was said yet")
        ids = [*self.fed, (self.unread or self.template.turn(ASKED["content"]))[0]]
        token = watch_token(self.model, copy.deepcopy(self.cache), ids[-1])
        n_sink, tokenizer = self.cache.cfg.n_sink, self.template.tokenizer
        first = max(n_sink, len(ids) - self.cache.cfg.capacity - n_old)
        sinks, recent = token_texts(tokenizer, ids[:n_sink]), token_texts(tokenizer, ids[first:])
        return token, [*sinks, *[""] * (first - n_sink), *recent]
