"""Model folders that somebody else wrote: config, weights and their index are used, or refused."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from command import only_line, streamlm
from project import ROOT
from refusal import change, refusal
from safetensors.torch import load_file, save_file
from test_gguf import metadata
from tiny_model import chat_tokenizer, write_tiny_model
from transformers import AutoModelForCausalLM

from streamlm.cache.models import load_model, read_model
from streamlm.cache.stored import read_config, stored_weights
from streamlm.limits import JSON_BYTES
from streamlm.sources.tokens import read_tokenizer


def read(folder):
    return load_model(folder, dtype=torch.float32, device="cpu")


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path / "model", chat_tokenizer())


# Wishes of a config.

STAND_IN = """
class M(type):
    def __getattr__(c, n): return 1
class A(metaclass=M):
    def __init__(self, *a, **k): pass
Device = LayerRepository = LocalLayerRepository = Mode = FuncRepository = A
def register_kernel_mapping(*a, **k): pass
def replace_kernel_forward_from_hub(*a, **k): pass
def use_kernel_forward_from_hub(*a, **k): return lambda c: c
def use_kernel_func_from_hub(*a, **k): return lambda c: c
def get_kernel(name, *a, **k):
    open({mark!r}, "w").write(name); raise RuntimeError("would download and import " + name)
"""
WISHES = {
    "attention": {"_attn_implementation": "stranger/kernel"},
    "without its line": {"attn_implementation": "stranger/kernel"},
    "internal": {"_attn_implementation_internal": "stranger/kernel"},
    "by part": {"_attn_implementation": {"": "stranger/kernel", "text_config": "stranger/kernel"}},
    "experts": {"_experts_implementation": "stranger/kernel", "experts_implementation": "stranger/kernel"},
    "kernels": {"use_kernels": True, "kernel_config": {"RMSNorm": "stranger/kernel:RMSNorm"}},
    "code": {"auto_map": {"AutoConfig": "stranger/code--it.It", "AutoModelForCausalLM": "it.It"}},
}


def test_attention_is_ours_whatever_a_config_asks_and_no_kernel_is_fetched(tmp_path, folder):
    mark, stub = tmp_path / "asked", tmp_path / "stub"
    for name in ("kernels", "kernels-0.12.0.dist-info"):
        (stub / name).mkdir(parents=True)
    (stub / "kernels-0.12.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.12.0\n"
    )
    (stub / "kernels/__init__.py").write_text(STAND_IN.format(mark=str(mark)))
    folders = []
    for name, wish in WISHES.items():
        folders.append(str(write_tiny_model(tmp_path / name)))
        change(tmp_path / name / "config.json", **wish)
    code = f"""if True:
        from streamlm.cache.models import load_model
        from streamlm.sources.tokens import read_tokenizer
        for folder in {folders!r}:
            load_model(folder); read_tokenizer(folder)"""
    paths = os.pathsep.join([str(ROOT), str(stub)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("name", WISHES)
def test_model_is_as_without_the_wishes_of_its_config(folder, name):
    plain = read_model(folder, dtype=torch.float32, device="cpu")
    change(folder / "config.json", **WISHES[name])
    wished = read_model(folder, dtype=torch.float32, device="cpu")
    assert wished.config._attn_implementation == plain.config._attn_implementation
    assert wished.config._experts_implementation == plain.config._experts_implementation
    ids = torch.arange(20)[None]
    assert torch.equal(wished(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("method", ["gptq", "aqlm", "quark", "no such", 5, {"a": 1}, None])
def test_quantisation_that_needs_a_package_is_refused_before_it_is_imported(folder, key, method):
    change(folder / "config.json", **{key: {"quant_method": method, "bits": 4}})
    assert_not_unpacked(folder)


@pytest.mark.parametrize("settings", ["fp8", ["mxfp4"], 8])
def test_quantisation_of_another_type_is_refused(folder, settings):
    change(folder / "config.json", quantization_config=settings)
    assert_not_unpacked(folder)


def assert_not_unpacked(folder):
    line = refusal(read, folder)
    assert "take its unquantised weights" in line
    assert "packages that a config names are not used" in line


def test_adapter_that_names_another_model_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "stranger/model"}')
    assert "holds an adapter, whose adapter_config.json names another model; merge" in refusal(read, folder)


def test_config_cannot_name_other_weights(tmp_path, folder):
    other = write_tiny_model(tmp_path / "other", chat_tokenizer(), initializer_range=0.1)
    change(folder / "config.json", transformers_weights="../other/model.safetensors")
    weights = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(read(folder).get_input_embeddings().weight, weights)
    assert not torch.equal(weights, load_file(other / "model.safetensors")["model.embed_tokens.weight"])


# Files of weights.


def split(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "pytorch_model.bin", "none.safetensors", "",
     ".", 5, None, ["model.safetensors"], "..", "x\x1b[31m.safetensors", "a\0.safetensors"],
)  # fmt: skip
def test_index_names_only_safetensors_of_its_folder(folder, name):
    index = split(folder)
    (folder / "pytorch_model.bin").touch()
    (folder.parent / "model.safetensors").touch()
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    assert "which is no safetensors file of this folder" in refusal(read, folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {}}', "[" * 100_000, "\xff", "null"]
)
def test_damaged_index_is_refused(folder, content):
    split(folder).write_text(content, encoding="latin-1")
    assert "model.safetensors.index.json" in refusal(read, folder)


def test_split_model_is_read_as_it_was(folder):
    ids = torch.arange(20)[None]
    before = read_model(folder, dtype=torch.float32, device="cpu")(ids).logits
    split(folder)
    assert torch.equal(read_model(folder, dtype=torch.float32, device="cpu")(ids).logits, before)


def header_of(file):
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def put_header(file, header, data, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


LIES = {
    "length of 10^18": lambda header, data: (header, data, 10**18),
    "length of nothing": lambda header, data: (header, data, 0),
    "no JSON": lambda header, data: (b"{" * 1000, data),
    "shape of 10^18": lambda header, data: (changed(header, shape=[10**9, 10**9]), data),
    "shape below zero": lambda header, data: (changed(header, shape=[-1]), data),
    "other shape": lambda header, data: (changed(header, shape=[31]), data),
    "other type": lambda header, data: (changed(header, dtype="X9"), data),
    "offsets of another": lambda header, data: (changed(header, data_offsets=[0, 128]), data),
    "offsets beyond": lambda header, data: (changed(header, data_offsets=[0, 10**15]), data),
    "offsets that go back": lambda header, data: (changed(header, data_offsets=[128, 0]), data),
    "name twice": lambda header, data: (twice(header), data),
    "half of the data": lambda header, data: (header, data[: len(data) // 2]),
    "data after the end": lambda header, data: (header, data + b"more"),
}


def changed(header, **changes):
    return header | {"model.norm.weight": header["model.norm.weight"] | changes}


def twice(header):
    entry = json.dumps(changed(header, shape=[8, 4])["model.norm.weight"])
    return json.dumps(header)[:-1].encode() + f', "model.norm.weight": {entry}}}'.encode()


@pytest.mark.parametrize("name", LIES)
def test_safetensors_whose_header_lies_are_refused(folder, name):
    file = folder / "model.safetensors"
    put_header(file, *LIES[name](*header_of(file)))
    refusal(read, folder)


WRONG_WEIGHTS = {
    "one is missing": lambda weights: weights.pop("model.norm.weight"),
    "one is too many": lambda weights: weights.update(more=torch.ones(3)),
    "one has another shape": lambda weights: weights.update({"model.norm.weight": torch.ones(31)}),
    "all are missing": lambda weights: weights.clear(),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_never_filled_at_random(folder, name):
    weights = load_file(folder / "model.safetensors")
    WRONG_WEIGHTS[name](weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "do not fit its config.json" in refusal(read, folder)


# Numbers in a config.

HUGE = 10**9
NUMBERS = {
    "num_hidden_layers": [0, -1, 10**4, HUGE, 10**30, 1.5, "2", [2], {}, True],
    "hidden_size": [0, -8, 33, 64, 10**6, HUGE, 10**12, "32", None],
    "intermediate_size": [0, -1, 47, 10**6, 10**12, "48", 1e300],
    "vocab_size": [0, -1, 10, 10**6, 10**12, "258", None],
    "num_attention_heads": [0, -1, 3, 5, HUGE, "4", None],
    "num_key_value_heads": [0, -1, 3, HUGE, "2"],
    "head_dim": [0, -1, 7, 10**6, HUGE, "8"],
    "max_position_embeddings": [0, -1, "64", 1.5, []],
    "rms_norm_eps": [float("nan"), float("inf"), "1", []],
    "layer_types": [["full_attention"], ["none", "full_attention"], "full_attention", 5, [[], {}]],
    "rope_parameters": [
        5, "x", [],
        *({"rope_type": "default", "rope_theta": theta} for theta in (0, -1, "10", float("nan"), [], 1e400)),
        {"rope_type": ["default"], "rope_theta": 1e4}, {"rope_type": "none such", "rope_theta": 1e4},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": "4"}, {"rope_type": "llama3", "rope_theta": 1e4},
    ],
    "eos_token_id": ["2", 1.5, {}, [[2]], ["2"]],
    "model_type": ["none such", 5, [], {}, None],
    "num_labels": [HUGE, 10**18],
    "hidden_act": ["none such", 5, []],
}  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
def test_number_that_no_model_has_is_refused_in_little_time(folder, key):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for value in NUMBERS[key]:
        without = {name: old for name, old in config.items() if name != key}
        file.write_text(json.dumps(without if value is None else config | {key: value}))
        refusal(read, folder)


@pytest.mark.parametrize("window", [0, -5, "x", 1.5])
def test_sliding_window_that_is_none_is_refused(folder, window):
    change(folder / "config.json", model_type="mistral", architectures=None, sliding_window=window)
    refusal(read, folder)


def test_model_is_refused_before_memory_is_taken(folder):
    """256 GiB of weights by the config: they are counted as the model is built, on no device."""
    change(folder / "config.json", num_hidden_layers=64, hidden_size=2**15, head_dim=2**13)
    assert "asks for more weights than its files hold" in refusal(read, folder)


CONTENTS = {
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "no UTF-8": b'{"model_type": "\xff"}',
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "deep": b'{"a":' * 100 + b"1" + b"}" * 100,
    "key twice": b'{"model_type": "llama", "model_type": "mistral"}',
    "digits": b'{"model_type": ' + b"9" * 10_000 + b"}",
    "steering": b'{"model_type": "\\u001b[31m"}',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_damaged_config_is_refused_wherever_it_is_read(folder, name):
    (folder / "config.json").write_bytes(CONTENTS[name])
    for reading in (read, read_config, *[read_tokenizer] * (name != "steering")):
        assert "config" in refusal(reading, folder)
    assert "config" in only_line(streamlm(folder.parent, "info", "--model-name", "model"))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_settings_of_any_size_are_not_read(folder, name):
    with (folder / name).open("wb") as file:
        file.truncate(JSON_BYTES + 1)
    reading = read_tokenizer if name.startswith("tokenizer") else read
    assert f"{name} cannot be read: it has 16,777,217 bytes" in refusal(reading, folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [HUGE, "x", 0])
def test_commands_refuse_a_wrong_number_in_one_line(folder, key, value):
    change(folder / "config.json", **{key: value})
    np.save(folder.parent / "ids.npy", np.arange(400) % 50)
    model = ("--model-name", "model")
    for args in (
        ("info", *model, "--no-check"), ("evaluate", *model, "--tokens", "ids.npy"),
        ("generate", *model, "--prompt", "Hi"), ("chat", *model), 
        ("latency", *model, "--tokens", "ids.npy", "--capacity", 9),
    ):  # fmt: skip
        assert "model" in only_line(streamlm(folder.parent, *args))


@pytest.mark.parametrize(
    "content", ["[]", "[" * 100_000, '{"eos_token_id": {}}', '{"eos_token_id": "x"}', "\0"]
)
def test_damaged_generation_settings_are_refused(folder, content):
    (folder / "generation_config.json").write_text(content)
    assert "generation_config.json cannot be read" in refusal(read, folder)


def text(value):
    return struct.pack("<Q", len(value)) + value


def key(kind, value):
    return text(b"x") + struct.pack("<I", kind) + value


def test_honest_folder_has_what_its_files_hold(folder):
    stored = stored_weights(folder)
    weights = load_file(folder / "model.safetensors")
    assert (stored.tensors, stored.elements) == (len(weights), sum(map(torch.numel, weights.values())))
    assert metadata()["llama.context_length"] == 64
