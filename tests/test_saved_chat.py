"""A conversation in a file: it goes on as if it had never been left, and what is no such file is refused."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import ENVIRONMENT, command
from safetensors.torch import save
from test_saved_cache import rewrite
from tiny_model import CHATML, chat_tokenizer, write_tiny_model

from streamlm.cache.models import load_model
from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.tensor_file import read_about
from streamlm.commands.output_types import SESSION
from streamlm.commands.outputs import Output
from streamlm.commands.session import Session
from streamlm.generate.chat import ChatTemplate, Conversation
from streamlm.generate.sampling import Sampling
from streamlm.generate.saved_chat import load_conversation, save_conversation

DRAWN = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "model"
    write_tiny_model(path, chat_tokenizer())
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def begin(model, system="Babble.", **given):
    cache = SinkCache(model.config, 6, 50, **given)
    return Conversation(model, ChatTemplate(chat_tokenizer(), system), cache, DRAWN, 15)


def say(conversation, text, pieces=None):
    """Return what is answered; it is stopped after so many pieces."""
    said = []
    said += conversation.ask(text, lambda: pieces is not None and len(said) >= pieces)
    return "".join(said), list(conversation.fed), conversation.messages


# What was said before it was saved: a text, and after how many pieces its answer was stopped.
BEFORE = {
    "nothing": [],
    "one answer": [("Hi", None)],
    "an answer that was stopped": [("Hi", None), ("Why?", 3)],
    "a question that was not read": [("Hi", None), ("Why?", 0)],
    "forgotten": [("Hi", None), ("/reset", None)],
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("system", [None, "Babble."])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_loaded_conversation_goes_on_as_if_never_left(tmp_path, model, before, system, kv_dtype):
    stayed = begin(model, system, kv_dtype=kv_dtype)
    for text, pieces in before:
        if text == "/reset":
            stayed.reset()
        else:
            say(stayed, text, pieces)
    save_conversation(tmp_path / "it", stayed)
    left = load_conversation(tmp_path / "it", model, chat_tokenizer(), 15)
    assert (left.messages, left.sampling) == (stayed.messages, DRAWN)
    for text in ("And?", "So?"):
        assert say(stayed, text) == say(left, text)
    left.reset()
    fresh = begin(model, system, kv_dtype=kv_dtype)
    assert say(left, "Hi") == say(fresh, "Hi")


def test_forgotten_conversation_leaves_nothing_in_its_file(tmp_path, model):
    conversation = begin(model)
    save_conversation(tmp_path / "new", conversation)
    say(conversation, "Hi")
    conversation.reset()
    save_conversation(tmp_path / "reset", conversation)
    assert read_about(tmp_path / "reset") == read_about(tmp_path / "new")  # the hash is of all it holds


def test_cache_of_a_conversation_can_be_loaded_alone(tmp_path, model):
    conversation = begin(model)
    say(conversation, "Hi")
    save_conversation(tmp_path / "it", conversation)
    assert SinkCache.load(tmp_path / "it", model).get_seq_length() == len(conversation.fed)
    conversation.cache.save(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"cache holds a cache, and no conversation$"):
        load_conversation(tmp_path / "cache", model, chat_tokenizer(), 15)


def test_conversation_under_another_template_is_refused(tmp_path, model):
    save_conversation(tmp_path / "it", begin(model))
    tokenizer = chat_tokenizer(CHATML + " ")
    with pytest.raises(ValueError, match="it was held with another chat template than the model has now"):
        load_conversation(tmp_path / "it", model, tokenizer, 15)


def said(**changes):
    """Return a change of what a file says of a conversation."""
    return lambda about: {"chat": json.dumps(json.loads(about["chat"]) | changes)}


HI = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        (said(messages=[HI | {"more": 1}]), {}),
        (said(messages=[HI | {"content": 7}]), {}),
        (said(messages=[HI | {"role": "tool"}]), {}),
        (said(messages=["Hi"]), {}),
        (said(messages=7), {}),
        (said(sampling={"temperature": -1, "top_p": 1, "seed": 0}), {}),
        (said(sampling={"heat": 1}), {}),
        (lambda about: {"chat": "[" * 100_000}, {}),
        (lambda about: {"chat": "7"}, {}),
        ({}, {"chat.fed": torch.tensor([3], dtype=torch.int32)}),
        ({}, {"chat.unread": torch.tensor([10**6], dtype=torch.int32)}),
        ({}, {"chat.unread": torch.tensor([-1], dtype=torch.int32)}),
        ({}, {"chat.unread": torch.tensor([[1]], dtype=torch.int32)}),
        ({}, {"chat.unread": torch.tensor([1.0])}),
        ({}, {"chat.generator": torch.zeros(3, dtype=torch.uint8)}),
        ({}, {"chat.generator": torch.full((5056,), 255, dtype=torch.uint8)}),
        ({}, {"chat.generator": torch.zeros(5056)}),
    ],
)
def test_forged_conversation_is_refused(tmp_path, model, about, tensors):
    path, conversation = tmp_path / "it", begin(model)
    say(conversation, "Hi")
    save_conversation(path, conversation)
    rewrite(path, about(read_about(path)) if about else {}, tensors)
    with pytest.raises(
        ValueError, match=r"^the saved cache \S*it is damaged, or is no saved cache: ."
    ) as caught:
        load_conversation(path, model, chat_tokenizer(), 15)
    assert "\n" not in str(caught.value)


def test_conversation_whose_pass_broke_off_is_not_saved(tmp_path, model):
    conversation = begin(model)
    say(conversation, "Hi")
    conversation.cache._pass = object()
    with pytest.raises(ValueError, match="the last answer broke off in the middle of a pass"):
        save_conversation(tmp_path / "it", conversation)
    assert not any(tmp_path.iterdir())


def test_cache_of_two_rows_is_no_conversation(tmp_path, model):
    path, conversation = tmp_path / "it", begin(model)
    say(conversation, "Hi")
    conversation.cache.batch_repeat_interleave(2)
    save_conversation(path, conversation)
    with pytest.raises(ValueError, match="its cache is not of one stream"):
        load_conversation(path, model, chat_tokenizer(), 15)


def chat(folder, lines, *args, size=("--window-size", "20", "--temperature", "1")):
    """Return what a chat through pipes says, on stdout and on stderr."""
    done = subprocess.run(
        command("chat", "--model-name", "model", "--max-new-tokens", "9", *size, *args),
        cwd=folder.parent,
        env=ENVIRONMENT,
        input=lines.encode(),
        capture_output=True,
    )
    return done.stdout, done.stderr.decode(), done.returncode


def test_session_is_kept_after_every_answer_and_goes_on(folder):
    whole, _, _ = chat(folder, "Hi\nWhy?\nAnd?\n")
    first, _, status = chat(folder, "Hi\nWhy?\n", "--session", "a")
    assert status == 0
    rest, said, status = chat(folder, "And?\n", "--session", "a", size=())
    assert (first + rest, status) == (whole, 0)
    assert "the conversation goes on after 'Why?'; " in said
    assert "temperature 1, " in said


def test_session_that_is_forgotten_is_kept_until_the_next_answer(folder):
    chat(folder, "Hi\n", "--session", "f")
    before = (folder.parent / "f").read_bytes()
    chat(folder, "/reset\n", "--session", "f", size=())
    assert (folder.parent / "f").read_bytes() == before
    chat(folder, "/reset\nNo\n", "--session", "f", size=())
    _, said, _ = chat(folder, "", "--session", "f", size=())
    assert "the conversation goes on after 'No'; " in said


def test_saved_conversation_is_loaded_in_another(folder):
    lines = "Hi\n/save b.safetensors\nWhy?\n/reset\nNo\n/load b.safetensors\nWhy?\n/save b.safetensors\n"
    lines += "/save c.json\n/load\n"
    out, said, status = chat(folder, f"{lines}/load model/config.json\n/load none\n")
    assert status == 0
    conversation = json.loads((folder.parent / "c.json").read_text())
    assert [message["content"] for message in conversation if message["role"] == "user"] == ["Hi", "Why?"]
    assert out.count(conversation[-1]["content"].encode()) == 2  # when it was asked first, and after /load
    assert "saved b.safetensors" in said
    assert "not saved: b.safetensors exists; name another file, or replace it with /save --force FILE" in said
    assert "/load takes a file; /help lists the commands" in said
    assert "not loaded: the saved cache model/config.json is damaged, or is no saved cache: " in said
    assert "not loaded: no such file: none; correct the path" in said


@pytest.mark.parametrize(
    "given", [("--system", "x"), ("--n-sink", "4"), ("--window-size", "20"), ("--seed", "0")]
)
def test_option_that_would_change_a_session_is_refused(folder, given):
    chat(folder, "Hi\n", "--session", "d")
    before = (folder.parent / "d").read_bytes()
    _, said, status = chat(folder, "Hi\n", "--session", "d", *given, size=())
    assert status == 1
    assert said.count("\n") == 1
    assert f"goes on as it began, which {given[0]} would change; leave it out" in said
    assert (folder.parent / "d").read_bytes() == before


def test_file_that_is_no_session_is_refused_and_stays(folder):
    for name, content in (("text", b"mine"), ("weights", save({"weight": torch.zeros(3)}))):
        path: Path = folder.parent / name
        path.write_bytes(content)
        _, said, status = chat(folder, "Hi\n", "--session", name, size=())
        assert (status, said.count("\n")) == (1, 1), said
        assert path.read_bytes() == content


def test_session_is_no_folder_and_no_file_of_the_model(folder):
    for name, why in (("model", "is a folder"), ("model/config.json", "is in the folder of the model")):
        _, said, status = chat(folder, "Hi\n", "--session", name, size=())
        assert (status, why in said) == (2, True)


def test_session_that_the_disk_refuses_is_reported_and_the_chat_goes_on(monkeypatch, model):
    notes, asked = [], Path("full/it")
    screen = SimpleNamespace(note=notes.append)
    session = Session(begin(model), screen, Path("model"), Output(asked, asked, SESSION))

    def refuse(*_):
        raise OSError("cannot write full/it: No space left on device")

    monkeypatch.setattr("streamlm.commands.session.save_conversation", refuse)
    session.keep()
    session.command("/reset")
    assert notes == ["not kept: cannot write full/it: No space left on device", "everything is forgotten"]
