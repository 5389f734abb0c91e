"""`generate` and `chat`: text without end, from a cache of constant size."""

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from streamlm.commands.options import (
    CACHE,
    OUTPUT,
    PACKAGED,
    TEXT,
    AsJson,
    Device,
    Dtype,
    ModelName,
    NSink,
    Storage,
    WindowSize,
    check_targets,
    find_model,
    print_json,
)

if TYPE_CHECKING:
    from streamlm.cache.sink_cache import SinkCache
    from streamlm.generate.sampling import Writing

DRAWING = "Drawing tokens"

Temperature = Annotated[
    float, typer.Option(min=0, help="0 takes the likeliest token.", rich_help_panel=DRAWING)
]
TopP = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Draw from the likeliest tokens of this much probability.", rich_help_panel=DRAWING
    ),
]
Seed = Annotated[int, typer.Option(help="Of the draws.", rich_help_panel=DRAWING)]


def _load(model_name: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """Return the prepared model and its tokenizer."""
    from streamlm.cache.models import load_model
    from streamlm.measure.device import choose_device, parse_dtype, use_threads
    from streamlm.sources.corpus import read_tokenizer

    model_dir, _ = find_model(model_name)
    tokenizer = read_tokenizer(model_dir)
    use_threads("auto")
    return load_model(model_dir, dtype=parse_dtype(dtype), device=choose_device(device)), tokenizer


def _make_cache(model: Any, n_sink: int, window_size: int, storage: str | None) -> "SinkCache":
    from streamlm.cache.ring import parse_storage
    from streamlm.cache.sink_cache import SinkCache

    narrow = None if storage is None else parse_storage(storage)
    return SinkCache(model.config, n_sink, window_size, storage=narrow)


def generate(
    model_name: ModelName = PACKAGED,
    prompt: Annotated[str | None, typer.Option(help="The text to go on from.", rich_help_panel=TEXT)] = None,
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
        typer.Option(help="End in front of this text; any number of times.", rich_help_panel=DRAWING),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Write on behind the model's own end.", rich_help_panel=DRAWING),
    ] = False,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    n_sink: NSink = 4,
    window_size: WindowSize = 1020,
    storage: Storage = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Write the text here, as it comes.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write on from a prompt, for as many tokens as you like, in constant memory."""
    asked = _read_prompts(prompt, prompts)
    if "" in (stop or []):
        raise typer.BadParameter("--stop needs a text; every text contains the empty one")
    check_targets(output)
    from streamlm.cache.models import model_title
    from streamlm.generate.sampling import Sampler, Sampling, Writing, stop_ids, write_on
    from streamlm.measure.progress import progress

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    model, tokenizer = _load(model_name, dtype, device)
    ids = _encode(tokenizer, asked, as_chat)
    ends = set() if ignore_eos else stop_ids(model, tokenizer)
    writings = [
        Writing(
            tokenizer, Sampler(sampling), max_new_tokens=max_new_tokens, stop_ids=ends, stop_texts=stop or []
        )
        for _ in asked
    ]
    cache, kv_bytes = _make_cache(model, n_sink, window_size, storage), 0
    with ExitStack() as stack:
        target = None if as_json else sys.stdout
        if output is not None:
            target = stack.enter_context(output.open("w", encoding="utf-8"))
        shown = _Shown(target, asked, writings)
        quiet = target is not None and target.isatty()  # the text itself shows how far it is
        bar = None if quiet else stack.enter_context(progress(max_new_tokens * len(asked), "token"))
        begin = time.perf_counter()
        for writing, piece in write_on(model, cache, ids, writings):
            shown.take(writing, piece)
            kv_bytes = kv_bytes or cache.nbytes  # later, of the rows that are not ended
            if bar is not None:
                bar.update()
        seconds = time.perf_counter() - begin
    record = {
        "model": model_title(model),
        "n_sink": n_sink,
        "window_size": window_size,
        "capacity": n_sink + window_size,
        "dtype": dtype,
        "storage": storage or dtype,
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
        "kv_tokens": cache.n_held,
        "kv_bytes": kv_bytes,
        "runtime_sec": seconds,
        "tokens_per_sec": sum(len(writing.tokens) for writing in writings) / seconds,
    }
    if as_json:
        print_json(record)
    else:
        typer.echo(_told(record), err=True)


def _told(record: dict[str, Any]) -> str:
    """Return the outcome in a line."""
    return (
        f"{sum(text['new_tokens'] for text in record['texts']):,} tokens in {record['runtime_sec']:.1f} s, "
        f"{record['tokens_per_sec']:.1f} tokens/s; {record['kv_tokens']:,} tokens held in "
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


class _Shown:
    """Texts on their way out: one as it comes, of several each when it and those before it have ended."""

    def __init__(self, target: TextIO | None, prompts: list[str], writings: "list[Writing]") -> None:
        self.target, self.prompts, self.writings = target, prompts, writings
        self.n_shown = 0

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


def chat(
    model_name: ModelName = PACKAGED,
    system: Annotated[
        str | None,
        typer.Option(help="The system prompt; the model's own if not given.", rich_help_panel=TEXT),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.", rich_help_panel=DRAWING)] = 512,
    temperature: Temperature = 0.2,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    n_sink: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="First tokens kept; if not given, the whole system prompt (at least 4), so that it is never "
            "forgotten.",
            rich_help_panel=CACHE,
        ),
    ] = None,
    window_size: WindowSize = 1020,
    storage: Storage = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Talk with an instruct model, without end, in constant memory."""
    from streamlm.cache.models import model_title
    from streamlm.commands.session import hold_session
    from streamlm.generate.chat import ChatTemplate, Conversation
    from streamlm.generate.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    model, tokenizer = _load(model_name, dtype, device)
    template = ChatTemplate(tokenizer, system)
    cache = _make_cache(model, template.n_sink() if n_sink is None else n_sink, window_size, storage)
    hold_session(Conversation(model, template, cache, sampling, max_new_tokens), model_title(model))
