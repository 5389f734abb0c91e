"""`chat`: a conversation without end, in constant memory."""

from typing import Annotated

import typer

from streamlm.commands.options import (
    CACHE,
    PACKAGED,
    TEXT,
    CacheOptions,
    ComputeOptions,
    KvDtype,
    ModelName,
    WindowSize,
    grouped,
)
from streamlm.commands.writing import DRAWING, ChatSamplingOptions, open_writer


@grouped
def chat(
    compute: ComputeOptions,
    draw: ChatSamplingOptions,
    model_name: ModelName = PACKAGED,
    system: Annotated[
        str | None,
        typer.Option(help="The system prompt; the model's own if not given.", rich_help_panel=TEXT),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.", rich_help_panel=DRAWING)] = 512,
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
    kv_dtype: KvDtype = None,
) -> None:
    """Talk with an instruct model, without end, in constant memory."""
    from streamlm.commands.session import hold_session
    from streamlm.generate.chat import ChatTemplate, Conversation

    sampling = draw.sampling
    opened, tokenizer = open_writer(model_name, compute.compute)
    template = ChatTemplate(tokenizer, system)
    sinks = template.n_sink() if n_sink is None else n_sink
    cache = CacheOptions(sinks, window_size, kv_dtype).open(opened.model)
    hold_session(Conversation(opened.model, template, cache, sampling, max_new_tokens), opened.title)
