"""A conversation in a file: what was said, where its cache stands, and how its next token is drawn."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.saved import SavedCache, model_hash, read_cache, write_cache
from streamlm.cache.sink_cache import SinkCache
from streamlm.characters import without_steering
from streamlm.generate.chat import ChatTemplate, Conversation, Message
from streamlm.generate.sampling import Sampling
from streamlm.measure.scoring import check_vocabulary, vocab_size

SPEAKERS = ("system", "user", "assistant")
_NAME = "chat"


def save_conversation(path: Path | str, conversation: Conversation) -> None:
    """Write a conversation, whole or not at all: the file of its cache (`SinkCache.save`), and the rest.

    Raises:
        ValueError: if its last pass broke off.
        OSError: if the disk refuses.
    """
    if conversation.cache._pass is not None:
        raise ValueError(
            "the last answer broke off in the middle of a pass; /reset begins another conversation"
        )
    said = {
        "messages": conversation.messages,
        "sampling": asdict(conversation.sampling),
        "template": conversation.template.sha256,
    }
    tensors = {
        "fed": torch.tensor(conversation.fed, dtype=torch.int32),
        "unread": torch.tensor(conversation.unread, dtype=torch.int32),
        "generator": conversation.sampler.generator.get_state(),
    }
    write_cache(
        path,
        conversation.cache.settings,
        conversation.cache.state_dict(),
        conversation.model,
        model_sha256=conversation.model_sha256,
        texts={_NAME: json.dumps(said)},
        tensors={f"{_NAME}.{name}": tensor for name, tensor in tensors.items()},
    )


def load_conversation(
    path: Path | str,
    model: PreTrainedModel,
    tokenizer: Any,
    max_new_tokens: int,
    model_sha256: str | None = None,
) -> Conversation:
    """Return a conversation that goes on as if it had never been left.

    Args:
        path: of a file that `save_conversation` wrote.
        model: the one that it was held with, prepared for `SinkCache`.
        tokenizer: of the model.
        max_new_tokens: of an answer.
        model_sha256: its `model_hash`, if it is known.

    Raises:
        ValueError: if the file is damaged or holds no conversation, or it was held with another model.
    """
    model_sha256 = model_sha256 or model_hash(model)
    saved = read_cache(path, model, model_sha256=model_sha256)
    if _NAME not in saved.texts:
        raise ValueError(f"{without_steering(str(path))} holds a cache, and no conversation")
    with saved.explained():
        conversation = _conversation(saved, model, tokenizer, max_new_tokens)
    conversation.model_sha256 = model_sha256
    return conversation


def _conversation(
    saved: SavedCache, model: PreTrainedModel, tokenizer: Any, max_new_tokens: int
) -> Conversation:
    said, tensors = json.loads(saved.texts[_NAME]), saved.tensors
    messages = [_checked_message(message) for message in said["messages"]]
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    template = ChatTemplate(tokenizer, system)
    if said["template"] != template.sha256:
        raise ValueError("it was held with another chat template than the model has now")
    cache = SinkCache._restored(saved, model)
    conversation = Conversation(model, template, cache, Sampling(**said["sampling"]), max_new_tokens)
    fed, unread = (_checked_ids(tensors[f"{_NAME}.{name}"], model) for name in ("fed", "unread"))
    if any(len(tensor) != 1 for name, tensor in saved.state.items() if name.endswith(".keys")):
        raise ValueError("its cache is not of one stream")
    if len(fed) != cache.get_seq_length() or "pads" in saved.state:
        raise ValueError("its tokens and its cache are not of one stream")
    conversation.go_on(messages, fed, unread)
    try:
        conversation.sampler.generator.set_state(tensors[f"{_NAME}.generator"])
    except (RuntimeError, TypeError) as error:
        raise ValueError("the state of its random generator is invalid") from error
    return conversation


def _checked_message(message: Any) -> Message:
    if not (isinstance(message, dict) and message.keys() == {"role", "content"}):
        raise ValueError("a message is not a role and a content")
    if message["role"] not in SPEAKERS or not isinstance(message["content"], str):
        raise ValueError("a message has an unknown role, or its content is no text")
    return message


def _checked_ids(ids: Tensor, model: PreTrainedModel) -> list[int]:
    if (ids.ndim, ids.dtype) != (1, torch.int32):
        raise ValueError("its token ids are not one row of int32")
    check_vocabulary(ids.numpy(), vocab_size(model))
    listed: list[int] = ids.tolist()
    return listed
