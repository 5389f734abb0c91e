"""`generate`: text without end, from a cache of constant size."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from streamlm import limits
from streamlm.commands.options import (
    PACKAGED,
    AsJson,
    CacheOptions,
    Compile,
    ComputeOptions,
    Force,
    ModelName,
    drawing_option,
    output_option,
    print_json,
    text_option,
)
from streamlm.commands.output_types import TEXT
from streamlm.commands.outputs import Outputs
from streamlm.commands.terminal import say
from streamlm.commands.writing import SamplingOptions, checked_text, open_writer

if TYPE_CHECKING:
    from streamlm.cache.sink_cache import SinkCache
    from streamlm.generate.sampling import Writing


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What is continued."""

    prompt: Annotated[str | None, text_option(help="The text to continue.")] = None
    prompts: Annotated[
        Path | None, text_option(help="A UTF-8 file of prompts, one a line, read together.")
    ] = None
    as_chat: Annotated[bool, text_option("--chat", help="Ask each prompt in the model's chat template.")] = (
        False
    )

    def read(self) -> list[str]:
        """Return the prompts."""
        if (self.prompt is None) == (self.prompts is None):
            raise typer.BadParameter("give exactly one of --prompt and --prompts")
        if self.prompts is None:
            return [checked_text(str(self.prompt), "--prompt")]
        from streamlm.input_files import read_bytes

        try:
            text = read_bytes(self.prompts, limits.PROMPTS_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.prompts} is not UTF-8 ({error}); convert it first") from error
        lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
        if not lines:
            raise ValueError(f"{self.prompts} has no prompt; write one a line")
        return lines

    def encode(self, tokenizer: Any, prompts: list[str]) -> tuple[list[list[int]], set[int]]:
        """Return the token ids of every prompt, and the tokens with which a chat template ends an answer."""
        from streamlm.generate.chat import ChatTemplate

        # Quietly: transformers warns of texts past the trained length, which are the point here.
        encode: Callable[[str], list[int]] = partial(tokenizer.encode, verbose=False)
        ends: set[int] = set()
        if self.as_chat:
            template = ChatTemplate(tokenizer)
            encode, ends = template.opening, template.end_ids
        ids = [encode(prompt) for prompt in prompts]
        if not all(ids):
            raise ValueError(f"the prompt {prompts[ids.index([])]!r} has no tokens; give some text")
        return ids, ends


@dataclass(frozen=True, kw_only=True)
class EndOptions:
    """Where a text ends."""

    max_new_tokens: Annotated[
        int, drawing_option(min=1, help="Write at most this many tokens; any number is fine.")
    ] = 512
    stop: Annotated[list[str] | None, drawing_option(help="End before this text; any number of times.")] = (
        None
    )
    ignore_eos: Annotated[
        bool, drawing_option("--ignore-eos", help="Continue after the model's own end.")
    ] = False

    def check(self) -> None:
        """Refuse a stop text that every text contains."""
        if "" in (self.stop or []):
            raise typer.BadParameter("--stop needs a text; every text contains the empty one")


def generate(
    *,
    model_name: ModelName = PACKAGED,
    asked: PromptOptions,
    end: EndOptions,
    draws: SamplingOptions,
    cache: CacheOptions,
    compute: ComputeOptions,
    compile: Compile = False,
    output: Annotated[Path | None, output_option(help="Write the text here, as it comes.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt, for as many tokens as you like, in constant memory."""
    prompts = asked.read()
    end.check()
    outputs = Outputs(inputs=[asked.prompts], model_dir=model_name, force=force)
    text_file = outputs.check(output, TEXT)
    import numpy as np

    from streamlm.cache.sink_cache import SinkCache
    from streamlm.generate.sampling import Sampler, Writing, stop_ids
    from streamlm.measure.scoring import check_vocabulary

    sampling = draws.check()
    opened, tokenizer = open_writer(model_name, compute, compile)
    ids, ends = asked.encode(tokenizer, prompts)
    for each in ids:
        check_vocabulary(np.array(each), opened.vocab_size)
    ends = set() if end.ignore_eos else ends | stop_ids(opened.model, tokenizer)
    limits: dict[str, Any] = {
        "max_new_tokens": end.max_new_tokens, "stop_ids": ends, "stop_texts": end.stop or []
    }  # fmt: skip
    cfg = cache.cfg.within(max(map(len, ids)) + end.max_new_tokens)
    make = partial(SinkCache, opened.model.config, cfg.n_sink, cfg.window_size, kv_dtype=cache.kv_dtype)
    samplers = [Sampler(sampling, cfg, ends) for _ in prompts]
    writings = [Writing(tokenizer, sampler, **limits) for sampler in samplers]
    with ExitStack() as stack:
        target = None if as_json else sys.stdout
        if text_file is not None:
            target = text_file.open()
            stack.callback(target.close)
        costs = _write(opened.model, make, ids, writings, _Printer(target, prompts, writings))
    record = {
        "model": opened.title,
        **asdict(cache.cfg),
        "capacity": cache.cfg.capacity,
        "dtype": compute.dtype,
        "storage": cache.kv_dtype or compute.dtype,
        **asdict(sampling),
        "texts": [_describe(*each) for each in zip(prompts, ids, writings, strict=True)],
        **costs,
    }
    if as_json:
        print_json(record)
    else:
        say(_summary(record), err=True)


def _write(
    model: Any,
    make: "Callable[[], SinkCache]",
    ids: list[list[int]],
    writings: "list[Writing]",
    printer: "_Printer",
) -> dict[str, Any]:
    """Continue every prompt, as many together as memory allows; return memory and time."""
    from streamlm.generate.batching import rows_that_fit
    from streamlm.generate.sampling import continue_prompts
    from streamlm.measure.progress import progress

    kv_tokens, kv_bytes, compile_sec, begin = 0, 0, 0.0, time.perf_counter()
    together = rows_that_fit(model, make(), {*map(len, ids)})
    with ExitStack() as stack:
        total = sum(writing.max_new_tokens for writing in writings)
        bar = None if printer.on_terminal else stack.enter_context(progress(total, "token"))
        for first in range(0, len(ids), together):
            cache, rows = make(), slice(first, first + together)
            for writing, piece in continue_prompts(model, cache, ids[rows], writings[rows]):
                printer.take(writing, piece)
                kv_bytes = max(kv_bytes, cache.nbytes)  # rows leave when they end
                if bar is not None:
                    bar.update()
            kv_tokens, compile_sec = max(kv_tokens, cache.n_held), compile_sec + cache._compile_sec
        seconds = time.perf_counter() - begin
    return {
        **({"compile_sec": compile_sec} if compile_sec else {}),
        "rows_together": min(together, len(ids)),
        "kv_tokens": kv_tokens,
        "kv_bytes": kv_bytes,
        "runtime_sec": seconds,
        "tokens_per_sec": sum(len(writing.tokens) for writing in writings) / seconds,
    }


def _describe(prompt: str, ids: Sequence[int], writing: "Writing") -> dict[str, Any]:
    """Return the record of one text."""
    return {
        "prompt": prompt,
        "text": writing.text,
        "prompt_tokens": len(ids),
        "new_tokens": len(writing.tokens),
        "ended_by": writing.ended_by,
    }


def _summary(record: dict[str, Any]) -> str:
    """Return the outcome in a line."""
    compiled = f", {record['compile_sec']:.1f} s of it to compile" if "compile_sec" in record else ""
    n_tokens = sum(text["new_tokens"] for text in record["texts"])
    return (
        f"{n_tokens:,} tokens in {record['runtime_sec']:.1f} s{compiled}, "
        f"{record['tokens_per_sec']:.1f} tokens/s; {record['kv_tokens']:,} tokens kept in "
        f"{record['kv_bytes'] / 2**20:.1f} MiB of keys and values"
    )


class _Printer:
    """Prints a single text as it streams; several texts in order, each once finished."""

    def __init__(self, target: TextIO | None, prompts: list[str], writings: "list[Writing]") -> None:
        self.target, self.prompts, self.writings = target, prompts, writings
        self.n_shown = 0

    @property
    def on_terminal(self) -> bool:
        """Whether the text itself shows the progress."""
        return self.target is not None and self.target.isatty()

    def take(self, writing: "Writing", piece: str) -> None:
        """Print what a new piece completes."""
        if len(self.prompts) == 1:
            self._print(piece if writing.ended_by is None else piece + "\n")
            return
        while self.n_shown < len(self.prompts) and self.writings[self.n_shown].ended_by is not None:
            self._print(f"==> {self.prompts[self.n_shown]} <==\n{self.writings[self.n_shown].text}\n\n")
            self.n_shown += 1

    def _print(self, text: str) -> None:
        if self.target is not None:
            self.target.write(text)
            self.target.flush()
