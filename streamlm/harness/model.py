"""`--model streamlm`: each request of lm-evaluation-harness as a stream of its own through a `SinkCache`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from streamlm.cache.models import load_model
from streamlm.cache.ring import parse_kv_dtype
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.generate.sampling import continue_prompts, stop_ids
from streamlm.harness.generation import Generation
from streamlm.harness.likelihood import Ids, Likelihood, score_continuations
from streamlm.measure.device import choose_device, parse_dtype
from streamlm.measure.progress import progress
from streamlm.sources.tokens import read_tokenizer

KNOWN = "pretrained, n_sink, window_size, positions, kv_dtype, dtype, device and batch_size"


@register_model("streamlm")
class StreamLM(TemplateLM):  # type: ignore[misc]
    """A model whose KV cache keeps sinks and a window, for every request of lm-evaluation-harness.

    Each request is a stream that starts with an empty cache, and nothing of it is cut off: one that is longer
    than the cache, or than the model was trained to, is read with eviction. A rolling log-likelihood is that
    of the whole text as one stream after the prefix token, where `hf` cuts it into windows of the trained
    length. With a window longer than every request, results are those of `hf`.

    Args:
        pretrained: a transformers model folder with safetensors weights and tokenizer.json.
        n_sink: see `SinkCache`.
        window_size: see `SinkCache`.
        positions: see `SinkCache`.
        kv_dtype: see `SinkCache`.
        dtype: of the weights.
        device: a torch device; "auto" is CUDA when present, else the CPU.
        batch_size: requests that are read at once, with shorter contexts padded at their left; changes speed
            and nothing else, but for rounding.
        unknown: what else `--model_args` has, which is refused.

    Raises:
        ValueError: if an argument is unknown or out of range, or the folder holds no such model.
    """

    def __init__(
        self,
        pretrained: Path | str,
        n_sink: int = 4,
        window_size: int = 1020,
        *,
        positions: Literal["cache", "text"] = "cache",
        kv_dtype: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int | str = 1,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(f"--model streamlm does not have the argument {min(unknown)}; it has {KNOWN}")
        sizes = {"n_sink": n_sink, "window_size": window_size, "batch_size": batch_size}
        for name, value in sizes.items():
            if not str(value).isdecimal():
                raise ValueError(f"{name} must be a whole number, got {value!r:.40}")
        self.batch_size = int(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.cfg = StreamConfig(n_sink=int(n_sink), window_size=int(window_size), positions=positions)
        self.kv_dtype = parse_kv_dtype(kv_dtype)
        self.tokenizer = read_tokenizer(Path(pretrained))
        self.model = load_model(pretrained, dtype=parse_dtype(dtype), device=choose_device(device))
        self._device = self.model.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: BOS, or else EOS, as `hf` has it."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ValueError(
            "the tokenizer has neither a BOS nor an EOS token to begin a text with; add one to its files"
        )

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm_eval keeps requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids, with the special tokens that the tokenizer adds unless the text has its own."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        # Quietly: transformers warns of texts past the trained length, which are the point here.
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model's chat template writes it."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _new_cache(self, n_tokens: int) -> SinkCache:
        """Return an empty cache for streams of so many tokens, no larger than they need."""
        cfg = self.cfg.within(n_tokens)
        return SinkCache(
            self.model.config, cfg.n_sink, cfg.window_size, positions=cfg.positions, kv_dtype=self.kv_dtype
        )

    def _scored(self, pairs: Sequence[tuple[Ids, Ids]]) -> Iterator[tuple[int, Likelihood]]:
        """Yield the index and likelihood of each (context, continuation), as they are scored."""
        pairs = [(context or [self.prefix_token_id], continuation) for context, continuation in pairs]
        with progress(len(pairs), "request") as bar:
            for scored in score_continuations(self.model, pairs, self._new_cache, batch_size=self.batch_size):
                yield scored
                bar.update()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each (texts, context, continuation)."""
        found: dict[int, tuple[float, bool]] = {}
        for index, likelihood in self._scored([(context, ids) for _, context, ids in requests]):
            found[index] = (likelihood.log_prob_nats, likelihood.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text as one stream after the prefix token."""
        found: dict[int, float] = {}
        texts = [self.tok_encode(request.args[0]) for request in requests]
        for index, likelihood in self._scored([([self.prefix_token_id], ids) for ids in texts]):
            found[index] = likelihood.log_prob_nats
            self.cache_hook.add_partial("loglikelihood_rolling", requests[index].args, found[index])
        return [found[index] for index in range(len(requests))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each context, up to a text that ends it."""
        asked = [Generation.parse(request.args[1]) for request in requests]
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        answers: dict[int, str] = {}
        with progress(len(prompts), "request") as bar:
            for start in range(0, len(order), self.batch_size):
                indices = order[start : start + self.batch_size]
                texts = self._write([prompts[i] for i in indices], [asked[i] for i in indices])
                for index, text in zip(indices, texts, strict=True):
                    answers[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                    bar.update()
        return [answers[index] for index in range(len(prompts))]

    def _write(self, prompts: Sequence[Ids], asked: Sequence[Generation]) -> list[str]:
        """Return the answers to prompts that are read and continued at once."""
        lengths = [len(prompt) + each.max_new_tokens for prompt, each in zip(prompts, asked, strict=True)]
        cache = self._new_cache(max(lengths))
        ends = stop_ids(self.model, self.tokenizer)
        writings = [each.writing(self.tokenizer, cache.cfg, ends) for each in asked]
        for _ in continue_prompts(self.model, cache, prompts, writings):
            pass
        pairs = zip(asked, writings, strict=True)
        return [each.answer(self.tokenizer, writing.tokens) for each, writing in pairs]
