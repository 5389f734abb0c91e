"""`chat`: a conversation without end, in constant memory."""

from pathlib import Path
from typing import Annotated

from streamlm.commands.options import (
    PACKAGED,
    Compile,
    ComputeOptions,
    KvDtype,
    ModelName,
    WindowSize,
    cache_option,
    drawing_option,
    text_option,
)
from streamlm.commands.writing import ChatSamplingOptions, checked_text, open_writer


def chat(
    *,
    model_name: ModelName = PACKAGED,
    system: Annotated[
        str | None, text_option(help="The system prompt; the model's own if not given.")
    ] = None,
    max_new_tokens: Annotated[
        int, drawing_option(min=1, help="Write at most this many tokens of an answer.")
    ] = 512,
    draws: ChatSamplingOptions,
    n_sink: Annotated[
        int | None,
        cache_option(
            min=0,
            help="First tokens kept; if not given, the whole system prompt (at least 4), so that it is never "
            "forgotten.",
        ),
    ] = None,
    window_size: WindowSize = 1020,
    kv_dtype: KvDtype = None,
    compute: ComputeOptions,
    compile: Compile = False,
) -> None:
    """Talk with an instruct model, without end, in constant memory."""
    from streamlm.cache.sink_cache import SinkCache
    from streamlm.commands.session import run_session
    from streamlm.generate.chat import ChatTemplate, Conversation

    if system is not None:
        checked_text(system, "--system")
    draws.check()
    opened, tokenizer = open_writer(model_name, compute, compile)
    sampling = draws.check(opened.model.generation_config)
    template = ChatTemplate(tokenizer, system)
    n_sink = template.n_sink() if n_sink is None else n_sink
    cache = SinkCache(opened.model.config, n_sink, window_size, kv_dtype=kv_dtype)
    conversation = Conversation(opened.model, template, cache, sampling, max_new_tokens)
    run_session(conversation, opened.title, Path(opened.model.name_or_path))
