"""Model folders as people have them: scored, or refused in one line."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from command import only_line, streamlm, streamlm_alone
from families import build
from judge import judge
from tiny_model import byte_tokenizer, write_tiny_model
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache

CHANGES = {
    "gptq": {
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    },
    "awq": {
        "quantization_config": {
            "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"
        }
    },
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "compressed": {
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}
        }
    },
    "fp8": {
        "quantization_config": {
            "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]
        }
    },
    "ntk": {"rope_parameters": None, "rope_scaling": {"type": "ntk", "factor": 2.0}},
    "yarn without a factor": {"rope_parameters": None, "rope_scaling": {"type": "yarn"}},
    "scaling as text": {"rope_parameters": None, "rope_scaling": "linear"},
    "heads as text": {"num_attention_heads": "4"},
    "no heads": {"num_attention_heads": 0},
}  # fmt: skip


def evaluate(place, folder):
    np.save(place / "ids.npy", np.arange(60) % 50)
    return streamlm(
        place, "evaluate", "--model-name", folder, "--tokens", "ids.npy", "--n-sink", 2, "--window-size", 9
    )


def perplexity(line):
    return re.search(r"perplexity \S+", line)[0]


@pytest.mark.parametrize("name", CHANGES)
def test_config_that_cannot_be_read_is_refused_in_one_line(tmp_path, name):
    folder = write_tiny_model(tmp_path / "model")
    as_written = evaluate(tmp_path, folder).stdout
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CHANGES[name]))
    done = evaluate(tmp_path, folder)
    if name == "fp8" and done.returncode == 0:  # from 5.24 on without a GPU: unpacked, here nothing is packed
        assert perplexity(done.stdout) == perplexity(as_written)
    else:
        assert "model" in only_line(done)


@pytest.mark.parametrize("name", ["falcon", "gptq"])
def test_one_line_is_all_that_a_terminal_shows(tmp_path, name):
    folder = tmp_path / "model"
    if name == "falcon":
        build(name).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    else:
        config = json.loads((write_tiny_model(folder) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | CHANGES[name]))
    np.save(tmp_path / "ids.npy", np.arange(60) % 50)
    options = ("--model-name", folder, "--tokens", "ids.npy", "--n-sink", 2, "--window-size", 9)
    line = only_line(streamlm_alone(tmp_path, "evaluate", *options))
    assert ("attention code of its own" if name == "falcon" else "take its unquantised weights") in line


@pytest.mark.parametrize("family", ["falcon", "mpt", "gpt2", "gemma3n_text", "llama4_text"])
def test_family_that_is_not_supported_is_refused_in_one_line(tmp_path, family):
    build(family).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    assert "supported are models with rotary positions" in only_line(evaluate(tmp_path, "model"))


def test_multimodal_gemma3_is_exact_on_text():
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    text = build("gemma3_text 6").config.to_dict()
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    found = judge("gemma3", transformers.Gemma3ForConditionalGeneration(config).eval())
    assert not found.refused
    assert found.nats < 1e-3


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    "other", [None, "model-00001-of-00009.safetensors", "pytorch_model.bin", "adapter_model.safetensors"]
)
def test_second_set_of_weights_is_named_with_the_one_that_is_read(tmp_path, is_split, other):
    folder = write_tiny_model(tmp_path / "model")
    if is_split:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        assert (folder / "model.safetensors.index.json").is_file()
    used = min(path.name for path in folder.glob("*.safetensors"))
    if other is not None:
        (folder / other).write_bytes((folder / used).read_bytes())
    np.save(tmp_path / "ids.npy", np.arange(60) % 50)
    options = ("--tokens", "ids.npy", "--n-sink", 2, "--window-size", 9)
    done = streamlm_alone(tmp_path, "evaluate", "--model-name", "model", *options)
    assert done.returncode == 0, done.stderr
    if other is None or other.startswith("adapter"):
        assert "set of weights" not in done.stderr
    else:
        assert f"more than one set of weights: {used} is read, {other} is not; remove" in done.stderr


def test_peft_model_is_as_if_merged():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    lora, ids = peft.get_peft_model(build("llama"), options).eval(), torch.arange(1, 41)[None]
    with prepare(lora), torch.inference_mode():
        got = lora(input_ids=ids, past_key_values=SinkCache(lora.config, 2, 9)).logits
    merged = lora.merge_and_unload()
    with prepare(merged), torch.inference_mode():
        expected = merged(ids, past_key_values=SinkCache(merged.config, 2, 9)).logits
    assert_close(got, expected, rtol=0, atol=1e-3)


def test_info_says_how_the_layers_rotate_or_why_not(tmp_path):
    build("smollm3").save_pretrained(tmp_path / "takes")
    build("doge").save_pretrained(tmp_path / "refuses")

    def line(*args):
        done = streamlm(tmp_path, "info", "--model-name", *args)
        return next(line for line in done.stdout.splitlines() if line.startswith("SinkCache"))

    taken = line("takes")
    assert "exact; 8 features, paired by halves, the slowest once around in" in taken
    assert "(3 layers); no rotation (1 layer)" in taken
    assert "refuses it: DogeForCausalLM lets layer 0 see through a mask of its own" in line("refuses")
    assert "loading the model decides" in line("refuses", "--no-check")
