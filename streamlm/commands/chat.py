"""`chat`: a conversation without end, in constant memory."""

from pathlib import Path
from typing import Annotated

import typer

from streamlm.commands.options import (
    PACKAGED,
    Compile,
    ComputeOptions,
    KvDtype,
    ModelName,
    WindowSize,
    cache_option,
    drawing_option,
    output_option,
    text_option,
)
from streamlm.commands.output_types import SESSION
from streamlm.commands.outputs import Outputs, expanded
from streamlm.commands.writing import ChatSamplingOptions, checked_text, open_writer

# What a conversation keeps as it began.
DRAWS = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
FIXED = ("system", "n_sink", "window_size", "kv_dtype", *DRAWS)


def chat(
    *,
    context: typer.Context,
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
    session: Annotated[
        Path | None,
        output_option(
            help="Go on with the conversation in this file, or begin one; it is written after every answer.",
        ),
    ] = None,
) -> None:
    """Talk with an instruct model, without end, in constant memory."""
    from streamlm.cache.sink_cache import SinkCache
    from streamlm.commands.session import run_session
    from streamlm.generate.chat import ChatTemplate, Conversation
    from streamlm.generate.saved_chat import load_conversation

    if system is not None:
        checked_text(system, "--system")
    draws.check()
    kept = None if session is None else expanded(session)
    goes_on = kept is not None and kept.is_file() and kept.stat().st_size > 0
    if goes_on:
        _refuse_changes(context)
    opened, tokenizer = open_writer(model_name, compute, compile)
    folder = Path(opened.model.name_or_path)
    file = Outputs(model_dir=folder, force=goes_on).check(kept, SESSION)
    if file is not None and goes_on:
        conversation = load_conversation(file.asked, opened.model, tokenizer, max_new_tokens)
    else:
        template = ChatTemplate(tokenizer, system)
        n_sink = template.n_sink() if n_sink is None else n_sink
        cache = SinkCache(opened.model.config, n_sink, window_size, kv_dtype=kv_dtype)
        sampling = draws.check(opened.model.generation_config)
        conversation = Conversation(opened.model, template, cache, sampling, max_new_tokens)
    run_session(conversation, opened.title, folder, file)


def _refuse_changes(context: typer.Context) -> None:
    """Raise ValueError if an option is given that would change how a conversation began."""
    for name in FIXED:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"the conversation in --session goes on as it began, which --{name.replace('_', '-')} would "
                "change; leave it out, or begin another one in another file"
            )
