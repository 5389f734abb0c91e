"""GGUF files of strangers: whole and true, or refused in one line."""

import json
import random
import struct

import numpy as np
import pytest
import torch
from refusal import refusal
from test_gguf import TOKENS, random_weights, to_gguf, write_gguf

from streamlm.cache.models import read_model
from streamlm.sources.gguf import convert_gguf
from streamlm.sources.gguf_header import read_header

HUGE = 10**9


def gguf(tmp_path, weights=None, **changes):
    return write_gguf(tmp_path / "it.gguf", random_weights() if weights is None else weights, **changes)


def convert(file):
    convert_gguf(file, file.parent / "made", "It")


@pytest.fixture
def nothing_to_spare(monkeypatch):
    """In a tiny model what may be spared would hide a bound that a large model exceeds."""
    monkeypatch.setattr("streamlm.cache.stored.SPARE_ELEMENTS", 0)


def test_honest_gguf_is_converted_with_nothing_to_spare(tmp_path, nothing_to_spare):
    convert(gguf(tmp_path))
    read_model(tmp_path / "made", dtype=torch.float32, device="cpu")


def test_gguf_without_tensors_is_refused(tmp_path):
    assert "it has no weights" in refusal(convert, gguf(tmp_path, {}))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", sorted(random_weights()))
def test_gguf_that_lacks_a_tensor_is_refused(tmp_path, name):
    weights = random_weights()
    del weights[name]
    refusal(convert, gguf(tmp_path, weights))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", sorted(random_weights()))
def test_gguf_with_a_tensor_of_another_shape_is_refused(tmp_path, name):
    weights = dict(to_gguf(*each) for each in random_weights().items())
    stored, weight = to_gguf(name, random_weights()[name])
    refusal(convert, gguf(tmp_path, weights | {stored: np.concatenate([weight, weight])}))
    assert not (tmp_path / "made").exists()


def test_gguf_with_a_tensor_that_transformers_does_not_take_is_refused(tmp_path):
    weights = random_weights() | {"blk.0.attn_q.bias": np.ones(32, np.float32)}
    assert "so that the model would be another" in refusal(convert, gguf(tmp_path, weights))


def test_gguf_of_two_tensors_with_one_name_is_refused(tmp_path):
    file = gguf(tmp_path, random_weights() | {"blk.0.attn_w.weight": np.ones(3, np.float32)})
    file.write_bytes(file.read_bytes().replace(b"blk.0.attn_w.weight", b"blk.0.attn_q.weight"))
    assert "two tensors of the same name" in refusal(convert, file)


TOKENISERS = {
    "tokens are missing": {"tokens": "none"},
    "a token twice": {"tokens": [*TOKENS[:-1], TOKENS[0]]},
    "an empty token": {"tokens": [*TOKENS[:-1], ""]},
    "types are fewer": {"token_type": [1]},
    "types are text": {"token_type": ["1"] * len(TOKENS)},
    "merges are missing": {"merges": "none"},
    "a merge of one": {"merges": ["h"]},
    "a merge of three": {"merges": ["h e l"]},
    "a merge out of the vocabulary": {"merges": ["h \u4e2d"]},
    "a merge to no token": {"merges": ["z z"]},
    "BOS beyond the vocabulary": {"bos_token_id": 10**6},
    "EOS is text": {"eos_token_id": "x"},
}


@pytest.mark.parametrize("name", TOKENISERS)
def test_gguf_whose_vocabulary_contradicts_itself_is_refused(tmp_path, name):
    refusal(convert, gguf(tmp_path, **TOKENISERS[name]))
    assert not (tmp_path / "made").exists()


KEYS = {
    "layers": lambda writer: writer.add_uint32("llama.block_count", HUGE),
    "layers as text": lambda writer: writer.add_string("llama.block_count", "1"),
    "layers of 10^4": lambda writer: writer.add_uint32("llama.block_count", 10**4),
    "no layers": lambda writer: writer.add_uint32("llama.block_count", 0),
    "width": lambda writer: writer.add_uint32("llama.embedding_length", HUGE),
    "heads": lambda writer: writer.add_uint32("llama.attention.head_count", HUGE),
    "no heads": lambda writer: writer.add_uint32("llama.attention.head_count", 0),
    "epsilon": lambda writer: writer.add_float32("llama.attention.layer_norm_rms_epsilon", float("nan")),
    "length": lambda writer: writer.add_uint32("llama.context_length", 0),
    "length as text": lambda writer: writer.add_string("llama.context_length", "64"),
    "parts": lambda writer: writer.add_string("split.count", "x"),
    "scaling": lambda writer: writer.add_string("llama.rope.scaling.factor", "x"),
}


@pytest.mark.parametrize("name", KEYS)
def test_gguf_with_a_number_that_no_model_has_is_refused(tmp_path, monkeypatch, name):
    """The key that is written first is the one that counts."""
    from gguf import GGUFWriter

    plain = GGUFWriter.add_key_value

    def first(self, key, *args, **options):
        if not any(key in part for part in self.kv_data):
            plain(self, key, *args, **options)

    monkeypatch.setattr(GGUFWriter, "add_key_value", first)
    refusal(convert, gguf(tmp_path, header=KEYS[name]))
    assert not (tmp_path / "made").exists()


def text(value):
    return struct.pack("<Q", len(value)) + value


def raw(keys=b"", n_keys=0, tensors=b"", n_tensors=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + keys + tensors


def key(kind, value):
    return text(b"x") + struct.pack("<I", kind) + value


def tensor(name=b"t", dims=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HEADERS = {
    "keys of 10^18": raw(n_keys=10**18),
    "tensors of 10^18": raw(n_tensors=10**18),
    "a string of 10^18": raw(key(8, struct.pack("<Q", 10**18)), 1),
    "a key of 10^18": raw(struct.pack("<Q", 10**18), 1),
    "an array of 10^18": raw(key(9, struct.pack("<IQ", 0, 10**18)), 1),
    "an array beyond the file": raw(key(9, struct.pack("<IQ", 4, 10**6)), 1),
    "strings of nothing": raw(key(9, struct.pack("<IQ", 8, 10**6)), 1),
    "arrays in arrays": raw(key(9, struct.pack("<IQ", 9, 1) * 5000), 1),
    "a type that is not known": raw(key(13, b""), 1),
    "a key twice": raw(key(0, b"1") * 2, 2),
    "no UTF-8": raw(text(b"\xff") + struct.pack("<I", 0) + b"1", 1),
    "another version": raw(version=1),
    "the other byte order": raw(version=3 << 24),
    "dimensions of 10^9": raw(tensors=text(b"t") + struct.pack("<I", HUGE), n_tensors=1),
    "no dimensions": raw(tensors=tensor(dims=()), n_tensors=1),
    "a dimension of 10^18": raw(tensors=tensor(dims=(2**60, 2**60)), n_tensors=1),
    "a dimension of 0": raw(tensors=tensor(dims=(0,)), n_tensors=1),
    "part of a block": raw(tensors=tensor(dims=(31,), kind=2), n_tensors=1),
    "a type of tensor that is not known": raw(tensors=tensor(kind=10**6), n_tensors=1),
    "an offset beyond the file": raw(tensors=tensor(offset=10**18), n_tensors=1) + b"0" * 500,
    "one offset for two": raw(tensors=tensor() + tensor(b"u"), n_tensors=2) + b"0" * 500,
}


@pytest.mark.parametrize("name", HEADERS)
def test_gguf_header_that_lies_is_refused_before_the_library_reads_it(tmp_path, name):
    file = tmp_path / "it.gguf"
    file.write_bytes(HEADERS[name])
    assert "cannot read" in refusal(convert, file)


def test_gguf_that_ends_anywhere_is_refused(tmp_path):
    whole = gguf(tmp_path).read_bytes()
    cut = tmp_path / "cut.gguf"
    drawn = random.Random(0)
    for size in [*range(0, 64), *(drawn.randrange(len(whole)) for _ in range(60)), len(whole) - 33]:
        cut.write_bytes(whole[:size])
        assert "cannot read" in refusal(convert, cut)


def test_gguf_with_any_byte_changed_gives_a_header_or_one_line(tmp_path):
    whole = bytearray(gguf(tmp_path).read_bytes())
    drawn = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[drawn.randrange(8000)] = drawn.randrange(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            read_header(tmp_path / "damaged.gguf")
        except ValueError as error:
            assert len(str(error)) < 400  # either is right


def test_gguf_is_read_without_what_lies_beside_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "stranger/model"}')
    (tmp_path / "generation_config.json").write_text('{"max_length": 3}')
    convert(gguf(tmp_path))
    assert "max_length" not in json.loads((tmp_path / "made/generation_config.json").read_text())
