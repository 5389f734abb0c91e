"""A converted GGUF file has the weights that were written and the tokenizer its metadata describes."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from streamlm.sources.gguf import build_tokenizer, convert_gguf

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "Ġ w", "1 9"]  # the last can never apply where every digit stands alone
TOKENS = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "Ġw", "19"]
D, HQ, HKV, HEAD, FF = 32, 4, 2, 8, 48
CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def metadata(**changes):
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS,
        "token_type": [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3),
        "merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 2,
        "add_bos_token": False,
    }
    meta = {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}
    return meta | {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.chat_template": CHAT,
    }


def random_weights():
    """Return float32 weights of a one-layer Llama under transformers' names."""
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (len(TOKENS), D),
        "model.norm.weight": (D,),
        f"{layer}input_layernorm.weight": (D,),
        f"{layer}post_attention_layernorm.weight": (D,),
        f"{layer}self_attn.q_proj.weight": (HQ * HEAD, D),
        f"{layer}self_attn.k_proj.weight": (HKV * HEAD, D),
        f"{layer}self_attn.v_proj.weight": (HKV * HEAD, D),
        f"{layer}self_attn.o_proj.weight": (D, HQ * HEAD),
        f"{layer}mlp.gate_proj.weight": (FF, D),
        f"{layer}mlp.up_proj.weight": (FF, D),
        f"{layer}mlp.down_proj.weight": (D, FF),
    }
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def to_gguf(name, weight):
    """Return the GGUF name, and the weight with rotary pairs interleaved as llama.cpp stores q and k."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    heads = {"q_proj": HQ, "k_proj": HKV}.get(name.split(".")[-2])
    if heads:
        weight = weight.reshape(heads, 2, HEAD // 2, D).swapaxes(1, 2).reshape(heads * HEAD, D)
    return names.get_name(name.removesuffix(".weight")) + ".weight", np.ascontiguousarray(weight)


def write_gguf(path, weights, parts_of=0, header=lambda writer: None, **changes):
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=parts_of)
    header(writer)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HQ)
    writer.add_head_count_kv(HKV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(len(TOKENS))
    write_tokenizer(writer, metadata(**changes))
    for name, weight in weights.items():
        writer.add_tensor(*(to_gguf(name, weight) if name.startswith("model.") else (name, weight)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer(writer, meta):
    for key, value in meta.items():
        if key.startswith("tokenizer."):
            {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}.get(
                type(value), writer.add_array
            )(key, value)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The weights that were written, and the folder made of them."""
    folder, weights = tmp_path_factory.mktemp("gguf"), random_weights()
    convert_gguf(write_gguf(folder / "tiny.gguf", weights), folder / "model", "Tiny, random")
    return weights, folder / "model"


def test_converted_weights_are_those_written_in_float32(converted):
    weights, folder = converted
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert set(state) == {*weights, "lm_head.weight"}
    for name, weight in weights.items():
        assert_close(state[name], torch.from_numpy(weight), rtol=0, atol=0)


def test_converted_folder_carries_title_and_no_path(converted):
    folder = converted[1]
    config = json.loads((folder / "config.json").read_text())
    assert config["streamlm_title"] == "Tiny, random"
    assert str(folder.parent) not in (folder / "config.json").read_text()
    assert (config["vocab_size"], config["dtype"]) == (len(TOKENS), "float32")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_conversion_is_silent(tmp_path, capfd):
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", random_weights()), tmp_path / "model", "Tiny")
    assert capfd.readouterr() == ("", "")


def test_converted_tokenizer_reloads_as_the_metadata_says(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[1], local_files_only=True)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    assert ids == (1, 2, 0, 2)
    assert (len(tokenizer), tokenizer.model_max_length) == (len(TOKENS), 64)
    assert tokenizer.convert_ids_to_tokens(range(len(TOKENS))) == TOKENS
    assert tokenizer.get_chat_template() == CHAT


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("hell", ["he", "ll"]),
        ("he wo", ["he", "Ġw", "o"]),
        ("1999", ["1", "9", "9", "9"]),
        ("<|im_start|>he", ["<|im_start|>", "he"]),
        ("\n", ["Ċ"]),
    ],
)
def test_converted_tokenizer_splits_as_smollm(converted, text, tokens):
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == tokens


def test_gpt2_keeps_digits_together():
    tokenizer = build_tokenizer(metadata(pre="gpt-2"))
    assert tokenizer.tokenize("1999") == ["19", "9", "9"]


@settings(deadline=None)
@given(st.text())
def test_decoding_returns_any_text(text):
    tokenizer = build_tokenizer(metadata())
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_bos_is_added_when_the_metadata_asks(tmp_path):
    build_tokenizer(metadata(add_bos_token=True)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("he", add_special_tokens=True) == ["<|im_start|>", "he"]
    assert tokenizer("he", add_special_tokens=False)["input_ids"] == [TOKENS.index("he")]


@pytest.mark.parametrize("changes", [{"pre": "llama-bpe"}, {"pre": None}, {"model": "llama"}])
def test_unknown_tokenizer_is_refused_by_name(changes):
    (value,) = changes.values()
    with pytest.raises(ValueError, match=rf"{value!r}.*supported are .*'smollm' or 'gpt-2'") as caught:
        build_tokenizer(metadata(**changes))
    assert "\n" not in str(caught.value)


def test_failed_conversion_leaves_nothing(tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", random_weights(), pre="qwen2")
    with pytest.raises(ValueError, match="'qwen2'"):
        convert_gguf(source, tmp_path / "model", "Tiny")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("content", [None, b"", b"not gguf", b"GGUF\x03\x00\x00\x00"])
def test_unreadable_file_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*x\.gguf as GGUF") as caught:
        convert_gguf(tmp_path / "x.gguf", tmp_path / "model", "X")
    assert "\n" not in str(caught.value)


def test_part_of_a_split_model_is_refused(tmp_path):
    """transformers reads it as a whole, and fills what it lacks at random."""
    write_gguf(tmp_path / "tiny.gguf", random_weights(), parts_of=6)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 1
    for i, part in enumerate(parts, 1):
        with pytest.raises(ValueError, match=f"is part {i} of {len(parts)} of a model; join them"):
            convert_gguf(part, tmp_path / "model", "Tiny, random")
    assert not (tmp_path / "model").exists()


def test_missing_weight_is_refused(tmp_path):
    weights = random_weights()
    del weights["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 of the model's weights, such as .*up_proj"):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", weights), tmp_path / "model", "Tiny, random")


def scaled(kind, factor):
    def header(writer):
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(factor)

    return header


def test_linear_rotary_scaling_is_carried_over(tmp_path):
    header = scaled(gguf.RopeScalingType.LINEAR, 4.0)
    convert_gguf(
        write_gguf(tmp_path / "tiny.gguf", random_weights(), header=header), tmp_path / "model", "Tiny"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    rope = model.config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)
    expected = 10_000.0 ** (-torch.arange(0, HEAD, 2) / HEAD) / 4
    assert_close(model.model.rotary_emb.inv_freq, expected)


def test_other_rotary_scaling_is_refused(tmp_path):
    header = scaled(gguf.RopeScalingType.YARN, 4.0)
    file = write_gguf(tmp_path / "yarn.gguf", random_weights(), header=header)
    with pytest.raises(
        ValueError, match="scales its rotary positions by 'yarn', which cannot be carried over"
    ):
        convert_gguf(file, tmp_path / "model", "Tiny")
    factors = {"rope_freqs.weight": np.full(HEAD // 2, 2.0, dtype=np.float32)}
    file = write_gguf(tmp_path / "factors.gguf", random_weights() | factors)
    with pytest.raises(ValueError, match=r"scales its rotary positions by 'rope_freqs\.weight'"):
        convert_gguf(file, tmp_path / "model", "Tiny")
