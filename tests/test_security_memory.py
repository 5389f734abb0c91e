"""Memory is reserved for what comes, not for what a number could mean."""

import io
import json
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from command import streamlm
from conftest import tiny_llama
from tiny_model import chat_tokenizer, write_tiny_model
from transformers import MistralConfig, MistralForCausalLM

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.limits import BATCH_ROWS, BATCH_SHARE
from streamlm.measure.memory import available_bytes


def tiny_mistral(**options):
    """A model whose own window is longer than any memory."""
    settings = tiny_llama(**options).config.to_dict() | {"sliding_window": 10**9}
    del settings["model_type"], settings["architectures"]
    return MistralForCausalLM(MistralConfig(**settings)).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory")
    write_tiny_model(path / "model", chat_tokenizer())
    write_tiny_model(path / "sliding", make=tiny_mistral)
    return path


def generate(place, *args, model="model"):
    done = streamlm(place, "generate", "--model-name", model, "--ignore-eos", "--json", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", ["model", "sliding"])
@pytest.mark.parametrize("kv_dtype", [[], ["--kv-dtype", "int8"]])
def test_a_window_is_reserved_no_longer_than_the_text_can_be(place, model, kv_dtype):
    asked = ("--prompt", "hello", "--max-new-tokens", 5, *kv_dtype)
    vast = generate(place, *asked, "--window-size", 10**12, model=model)
    enough = generate(place, *asked, "--window-size", 6, model=model)
    assert vast["kv_bytes"] == enough["kv_bytes"]
    assert [text["text"] for text in vast["texts"]] == [text["text"] for text in enough["texts"]]
    assert vast["window_size"] == 10**12


@pytest.mark.parametrize("rows", [1, 7])
def test_prompts_are_written_in_batches_of_bounded_size_and_as_they_would_be_in_one(place, rows):
    (place / "prompts.txt").write_text("\n".join(f"the rose number {i}" for i in range(40)))
    asked = ("--prompts", "prompts.txt", "--max-new-tokens", 3, "--dtype", "float64")
    whole = generate(place, *asked)
    available = int((whole["kv_bytes"] // 40 * rows + 1) / BATCH_SHARE)
    with (
        patch("streamlm.generate.batching.available_bytes", lambda device: available),
        patch("streamlm.generate.sampling.BATCH_TOKENS", 40),
    ):
        parts = generate(place, *asked)
    assert parts["texts"] == whole["texts"]
    assert parts["kv_bytes"] * 40 == whole["kv_bytes"] * rows
    assert BATCH_ROWS >= 40  # or the whole was no whole


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say what it has")
def test_memory_that_is_there_is_that_of_the_machine_or_less_in_a_container(tmp_path, monkeypatch):
    machine = available_bytes(torch.device("cpu"))
    assert 2**28 < machine < 2**45
    (tmp_path / "own").write_text("0::/job/step\n")
    for group in ("job", "job/step"):
        (tmp_path / group).mkdir()
        (tmp_path / group / "memory.current").write_text("1000\n")
        (tmp_path / group / "memory.stat").write_text("anon 300\ninactive_file 600\n")
        (tmp_path / group / "memory.max").write_text("max\n")
    monkeypatch.setattr("streamlm.measure.memory.GROUPS", tmp_path)
    monkeypatch.setattr("streamlm.measure.memory.OWN_GROUP", tmp_path / "own")
    assert available_bytes(torch.device("cpu")) > 2**28
    for group, limit, left in (("job", "1500\n", 1100), ("job/step", "900\n", 500), ("job", "300\n", 0)):
        (tmp_path / group / "memory.max").write_text(limit)
        assert available_bytes(torch.device("cpu")) == left
    assert available_bytes(torch.device("meta")) is None


@pytest.mark.parametrize("kv_dtype", [[], ["--kv-dtype", "int8"]])
def test_a_chat_for_which_there_is_no_memory_says_so_in_a_line(place, kv_dtype, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    done = streamlm(place, "chat", "--model-name", "model", "--window-size", 10**12, *kv_dtype)
    assert "there is no memory on cpu for the keys and values of 1,000,000,0" in done.stderr
    assert "use a smaller window_size" in done.stderr.splitlines()[-1]


@torch.inference_mode()
def test_a_cache_that_found_no_memory_is_refused_and_not_half_made():
    model = tiny_llama()
    cache = SinkCache(model.config, window_size=10**12)
    with prepare(model), pytest.raises(ValueError, match="no memory on cpu for the keys and values of"):
        model(torch.ones(1, 3, dtype=torch.int64), past_key_values=cache)
