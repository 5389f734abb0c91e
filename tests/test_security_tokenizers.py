"""Tokenizers and chat templates of strangers."""

import pytest
from command import only_line, streamlm
from refusal import change, refusal
from tiny_model import CHATML, chat_tokenizer, write_tiny_model

from streamlm.generate.chat import ChatTemplate
from streamlm.sources.tokens import read_tokenizer


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path / "model", chat_tokenizer())


TOKENIZERS = {
    "nothing": "",
    "a list": "[]",
    "brackets": "[" * 100_000,
    "no model": "{}",
    "null": "null",
    "a model of a type that is not known": '{"model": {"type": "x"}}',
    "ids beyond any memory": '{"model": {"type": "BPE", "vocab": {"a": 2147483647}, "merges": []}}',
    "added ids beyond any memory": '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 4194304}]}',
    "ids below zero": '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
    "a merge out of vocabulary": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
    "a pattern that is none": '{"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}',
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_damaged_tokenizer_is_refused(folder, name):
    (folder / "tokenizer.json").write_text(TOKENIZERS[name])
    assert "tokenizer in" in refusal(read_tokenizer, folder)


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "5", '{"added_tokens_decoder": {"x": 5}}'])
def test_damaged_tokenizer_settings_are_refused(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    assert "tokenizer" in refusal(read_tokenizer, folder)


def test_tokenizer_runs_no_code_and_reads_no_file_outside_its_folder(tmp_path, folder):
    other = tmp_path / "other.json"
    other.write_text((folder / "tokenizer.json").read_text().replace('"!":', '"!?":'))
    expected = read_tokenizer(folder)
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["stranger/code--it.It", None]},
        tokenizer_file=str(other),
        vocab_file="/etc/passwd",
    )
    assert read_tokenizer(folder).get_vocab() == expected.get_vocab()
    assert read_tokenizer(folder).chat_template == CHATML


def test_token_beyond_the_embedding_is_refused(folder):
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    done = streamlm(folder.parent, "generate", "--model-name", "model", "--prompt", "a zebra")
    assert "is outside the vocabulary of 259" in only_line(done)


TEMPLATES = {
    "raises": "{{ raise_exception('no\x1b[31m') }}",
    "divides by zero": "{{ 1 / 0 }}",
    "no such name": "{{ nothing.such }}",
    "a mistake": "{% for %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "class": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "an import": "{% include '/etc/passwd' %}",
    "changes its messages": "{{ messages.append(1) }}",
    "much": "{{ 'x' * 10**8 }}",
    "number": "{{ 5 + 'x' }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_template_that_fails_is_one_line(folder, name):
    template = ChatTemplate(chat_tokenizer(TEMPLATES[name]))
    assert "the chat template of" in refusal(template.opening, "Hi")


def test_chat_template_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr("streamlm.generate.chat.TEMPLATE_SECONDS", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(chat_tokenizer(endless))
    assert "refuses the conversation: it takes longer than 0.5 seconds" in refusal(template.opening, "Hi")


def test_chat_template_that_fails_ends_the_command_in_one_line(folder):
    (folder / "chat_template.jinja").write_text(TEMPLATES["raises"])
    for args in (("chat",), ("generate", "--chat", "--prompt", "Hi")):
        line = only_line(streamlm(folder.parent, *args, "--model-name", "model"))
        assert "refuses the conversation: no\\x1b[31m" in line
