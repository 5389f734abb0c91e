"""`generate`: text without end, from a cache of constant size."""

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from streamlm.commands.options import (
    OUTPUT,
    PACKAGED,
    TEXT,
    AsJson,
    CacheOptions,
    ComputeOptions,
    ModelName,
    check_targets,
    grouped,
    print_json,
)
from streamlm.commands.writing import DRAWING, SamplingOptions, open_writer

if TYPE_CHECKING:
    from streamlm.generate.sampling import Writing


@grouped
def generate(
    cache: CacheOptions,
    compute: ComputeOptions,
    draw: SamplingOptions,
    model_name: ModelName = PACKAGED,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.", rich_help_panel=TEXT)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 file of prompts, one a line, read together.", rich_help_panel=TEXT),
    ] = None,
    as_chat: Annotated[
        bool,
        typer.Option("--chat", help="Ask each prompt in the model's chat template.", rich_help_panel=TEXT),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Write so many tokens; any number is fine.", rich_help_panel=DRAWING)
    ] = 512,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; any number of times.", rich_help_panel=DRAWING),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Continue after the model's own end.", rich_help_panel=DRAWING),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the text here, as it comes.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt for as many tokens as you like, in constant memory."""
    asked = _read_prompts(prompt, prompts)
    if "" in (stop or []):
        raise typer.BadParameter("--stop needs a text; every text contains the empty one")
    check_targets(output)
    from streamlm.generate.sampling import Sampler, Writing, stop_ids

    sampling = draw.sampling
    opened, tokenizer = open_writer(model_name, compute.compute)
    ids = _encode(tokenizer, asked, as_chat)
    ends = set() if ignore_eos else stop_ids(opened.model, tokenizer)
    writings = [
        Writing(
            tokenizer, Sampler(sampling), max_new_tokens=max_new_tokens, stop_ids=ends, stop_texts=stop or []
        )
        for _ in asked
    ]
    stream = cache.open(opened.model)
    with ExitStack() as stack:
        target = None if as_json else sys.stdout
        if output is not None:
            target = stack.enter_context(output.open("w", encoding="utf-8"))
        kv_bytes, seconds = _write(opened.model, stream, ids, writings, _Printer(target, asked, writings))
    record = {
        "model": opened.title,
        "n_sink": stream.cfg.n_sink,
        "window_size": stream.cfg.window_size,
        "capacity": stream.cfg.capacity,
        "dtype": compute.dtype,
        "storage": cache.kv_dtype or compute.dtype,
        **asdict(sampling),
        "texts": [
            {
                "prompt": text,
                "text": writing.text,
                "prompt_tokens": len(tokens),
                "new_tokens": len(writing.tokens),
                "ended_by": writing.ended_by,
            }
            for text, tokens, writing in zip(asked, ids, writings, strict=True)
        ],
        "kv_tokens": stream.n_held,
        "kv_bytes": kv_bytes,
        "runtime_sec": seconds,
        "tokens_per_sec": sum(len(writing.tokens) for writing in writings) / seconds,
    }
    if as_json:
        print_json(record)
    else:
        typer.echo(_summary(record), err=True)


def _write(
    model: Any, cache: Any, ids: list[list[int]], writings: "list[Writing]", printer: "_Printer"
) -> tuple[int, float]:
    """Write after every prompt; return the bytes of keys and values of all rows, and the seconds."""
    from streamlm.generate.sampling import write_on
    from streamlm.measure.progress import progress

    kv_bytes, begin = 0, time.perf_counter()
    with ExitStack() as stack:
        total = sum(writing.max_new_tokens for writing in writings)
        bar = None if printer.on_terminal else stack.enter_context(progress(total, "token"))
        for writing, piece in write_on(model, cache, ids, writings):
            printer.take(writing, piece)
            kv_bytes = kv_bytes or cache.nbytes  # later, of the rows that have not ended
            if bar is not None:
                bar.update()
    return kv_bytes, time.perf_counter() - begin


def _summary(record: dict[str, Any]) -> str:
    """Return the outcome in a line."""
    return (
        f"{sum(text['new_tokens'] for text in record['texts']):,} tokens in {record['runtime_sec']:.1f} s, "
        f"{record['tokens_per_sec']:.1f} tokens/s; {record['kv_tokens']:,} tokens kept in "
        f"{record['kv_bytes'] / 2**20:.1f} MiB of keys and values"
    )


def _read_prompts(prompt: str | None, prompts: Path | None) -> list[str]:
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give exactly one of --prompt and --prompts")
    if prompts is None:
        return [str(prompt)]
    lines = [line for line in prompts.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{prompts} holds no prompt; write one a line")
    return lines


def _encode(tokenizer: Any, prompts: list[str], as_chat: bool) -> list[list[int]]:
    """Return the token ids of every prompt."""
    from streamlm.generate.chat import ChatTemplate

    # Quietly: transformers warns of texts past the trained length, which are the point here.
    encode = ChatTemplate(tokenizer).opening if as_chat else partial(tokenizer.encode, verbose=False)
    ids = [encode(prompt) for prompt in prompts]
    if not all(ids):
        raise ValueError(f"the prompt {prompts[ids.index([])]!r} has no tokens; give some text")
    return ids


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
        if self.target is None:
            return
        if len(self.prompts) == 1:
            self.target.write(piece if writing.ended_by is None else piece + "\n")
            self.target.flush()
            return
        while self.n_shown < len(self.prompts) and self.writings[self.n_shown].ended_by is not None:
            text = self.writings[self.n_shown].text
            self.target.write(f"==> {self.prompts[self.n_shown]} <==\n{text}\n\n")
            self.target.flush()
            self.n_shown += 1
