"""`watch`: a text as a cache reads it, at a terminal or on a page."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamlm import limits
from streamlm.commands.inputs import open_inputs
from streamlm.commands.options import (
    ComputeOptions,
    Force,
    NSink,
    SourceOptions,
    WindowSize,
    cache_option,
    output_option,
    text_option,
)
from streamlm.commands.output_types import PAGE
from streamlm.commands.terminal import say
from streamlm.config import StreamConfig

if TYPE_CHECKING:
    from streamlm.generate.watching import WatchedToken

MAX_DELAY = 60  # seconds
LINES_EVERY = 100  # tokens between two lines where there is no terminal


def watch(
    *,
    source: SourceOptions,
    max_eval_tokens: Annotated[
        int,
        text_option(min=1, help=f"Read at most this many token ids, {limits.WATCH_TOKENS:,} or fewer."),
    ] = 300,
    n_sink: NSink = 4,
    window_size: WindowSize = 60,
    layer: Annotated[
        int | None,
        cache_option(min=0, help="Show the attention of this layer; the mean of all layers if not given."),
    ] = None,
    compute: ComputeOptions,
    delay: Annotated[
        float, output_option(help=f"Wait {MAX_DELAY} seconds or fewer after each token at a terminal.")
    ] = 0.05,
    html: Annotated[
        Path | None,
        output_option("--html", help="Write it as a page with a slider, .html, that needs nothing else."),
    ] = None,
    force: Force = False,
) -> None:
    """Show a text as the cache reads it: sinks, window, forgotten tokens, and where attention goes."""
    if max_eval_tokens > limits.WATCH_TOKENS:
        raise typer.BadParameter(f"--max-eval-tokens of watch is at most {limits.WATCH_TOKENS:,}")
    if not 0 <= delay <= MAX_DELAY:
        raise typer.BadParameter(f"--delay is from 0 to {MAX_DELAY} seconds, got {delay:g}")
    page_file = source.outputs(force).check(html, PAGE)
    cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
    inputs = open_inputs(source, max_eval_tokens)
    from streamlm.commands.watch_page import watch_page
    from streamlm.generate.watching import token_texts
    from streamlm.generate.watching import watch as watch_tokens
    from streamlm.measure.open_model import open_model
    from streamlm.sources.tokens import read_tokenizer

    opened = open_model(inputs.model_dir, compute, title=inputs.title)
    texts = token_texts(read_tokenizer(inputs.model_dir), inputs.ids.tolist())
    about = about_watching(opened.title, inputs.dataset, cfg, layer)
    watched = watch_tokens(opened.model, inputs.ids, cfg, layer)
    first = next(watched)  # it refuses a layer before anything is shown
    say(about)
    tokens = _shown(chain([first], watched), texts, cfg, delay)
    if page_file is None:
        for _ in tokens:
            pass
        return
    page = watch_page([*tokens], texts, cfg, dataset=inputs.dataset, about=about)
    with page_file.whole() as path:
        path.write_text(page, encoding="utf-8")
    say(page_file.asked)


def about_watching(model: str, dataset: str, cfg: StreamConfig, layer: int | None) -> str:
    """Return what is read by what, what is kept of it, and what shares of attention are a mean of."""
    heads = "all layers that attend and their heads" if layer is None else f"the heads of layer {layer}"
    return (
        f"{model} reads {dataset}: {cfg.n_sink} sinks and a window of {cfg.window_size} tokens, the newest "
        f"included. Attention is the mean over {heads}."
    )


def _shown(
    tokens: "Iterable[WatchedToken]", texts: Sequence[str], cfg: StreamConfig, delay: float
) -> "Iterator[WatchedToken]":
    """Pass tokens on, having shown each at a terminal, or in a pipe now and then a line."""
    from rich.console import Console
    from rich.live import Live

    from streamlm.commands.watch_text import picture, summary

    if not sys.stdout.isatty():
        for token in tokens:
            if token.position % LINES_EVERY == LINES_EVERY - 1 or token.position == len(texts) - 1:
                say(summary(token, texts, cfg))
            yield token
        return
    console = Console(file=getattr(sys.stdout, "rich_proxied_file", sys.stdout), highlight=False)
    # What others print meanwhile must not go through rich, past the filter of sys.stdout.
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        for token in tokens:
            live.update(picture(token, texts, cfg, console.width, console.height), refresh=True)
            time.sleep(delay)
            yield token
