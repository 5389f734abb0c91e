"""A cache in a file: the stream goes on with the same bits, and what is no such file is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import MODELS, VOCAB, tiny_llama
from project import ROOT
from safetensors import safe_open
from safetensors.torch import save
from test_security_checkpoints import FOREIGN

from streamlm.cache.prepare import prepare
from streamlm.cache.saved import model_hash
from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.tensor_file import digest_of, read_about

IDS = torch.from_numpy(np.random.default_rng(0).integers(VOCAB, size=(2, 120)))
# Arguments of a cache of 2 + 6 tokens, how many were read, and left pads of the second row.
CASES = {
    "one token": ({}, 1, 0),
    "sinks alone": ({}, 2, 0),
    "one token before it is full": ({}, 7, 0),
    "exactly full": ({}, 8, 0),
    "first eviction": ({}, 9, 0),
    "no sinks": ({"n_sink": 0}, 33, 0),
    "moved back": ({"position_limit": 20}, 57, 0),
    "about to be moved back": ({"position_limit": 20}, 20, 0),
    "positions in the text": ({"positions": "text"}, 33, 0),
    "int8": ({"kv_dtype": "int8"}, 33, 0),
    "bfloat16": ({"kv_dtype": torch.bfloat16}, 5, 0),
    "left pads": ({}, 33, 3),
    "left pads, not full": ({}, 7, 3),
}


def feed(model, cache, ids, n_pads=0):
    """Return the logits of a pass over ids (B, T); the second row is padded at its left."""
    mask = torch.ones_like(ids)
    mask[1, :n_pads] = 0
    return model(ids, past_key_values=cache, attention_mask=mask if n_pads else None).logits


@torch.inference_mode()
@pytest.mark.parametrize(("given", "n_read", "n_pads"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_loaded_cache_goes_on_with_the_same_bits(tmp_path, name, given, n_read, n_pads):
    with prepare(MODELS[name]()) as model:
        cache = SinkCache(model.config, **{"n_sink": 2, "window_size": 6, **given})
        for start in range(0, n_read, 5):
            feed(model, cache, IDS[:, start : min(start + 5, n_read)], n_pads if start == 0 else 0)
        cache.save(tmp_path / "it")
        loaded = SinkCache.load(tmp_path / "it", model)
        assert (loaded.settings, loaded.n_held, loaded.nbytes) == (cache.settings, cache.n_held, cache.nbytes)
        for size in (1, 5, 1, 1):  # steps, and a pass of several tokens
            block = IDS[:, n_read : n_read + size]
            assert torch.equal(feed(model, cache, block), feed(model, loaded, block))
            n_read += size


def test_loaded_cache_can_be_saved_and_the_file_is_small(tmp_path):
    with prepare(tiny_llama()) as model, torch.no_grad():
        cache = SinkCache(model.config, 2, 600)
        feed(model, cache, IDS)
        cache.save(tmp_path / "a")
        SinkCache.load(tmp_path / "a", model).save(tmp_path / "b")
    assert read_about(tmp_path / "a") == read_about(tmp_path / "b")  # which has the hash of the tensors
    assert cache.nbytes < (tmp_path / "a").stat().st_size < cache.nbytes + 2**20


GO_ON = """
import sys
import torch
from conftest import tiny_llama
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
with prepare(tiny_llama()) as model, torch.inference_mode():
    cache = SinkCache.load(sys.argv[1], model)
    torch.save(model(torch.tensor([[5], [6]]), past_key_values=cache).logits, sys.argv[2])
"""


def test_another_process_goes_on_with_the_same_bits(tmp_path):
    with prepare(tiny_llama()) as model, torch.inference_mode():
        cache = SinkCache(model.config, 2, 6)
        feed(model, cache, IDS)
        cache.save(tmp_path / "it")
        here = feed(model, cache, torch.tensor([[5], [6]]))
    args = [sys.executable, "-c", GO_ON, tmp_path / "it", tmp_path / "logits"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(args, env=environment, check=True)
    assert torch.equal(torch.load(tmp_path / "logits"), here)


@pytest.fixture
def saved(tmp_path):
    with prepare(tiny_llama()) as model, torch.no_grad():
        cache = SinkCache(model.config, 2, 6)
        feed(model, cache, IDS)
        cache.save(tmp_path / "it")
    return tmp_path / "it"


def one_weight(model):
    weight = model.base_model.layers[1].mlp.up_proj.weight.data
    weight[0, 0] = torch.nextafter(weight[0, 0], weight[0, 0] + 1)


def rope(model):
    model.config.rope_parameters["rope_theta"] = 20_000.0


@pytest.mark.parametrize("change", [one_weight, rope, lambda model: model.double()])
def test_cache_of_another_model_is_refused(saved, change):
    with prepare(tiny_llama()) as model:
        assert SinkCache.load(saved, model).n_held == 8
    other = tiny_llama()
    change(other)
    with pytest.raises(ValueError, match="it was saved with another model: other weights, another number"):
        SinkCache.load(saved, other)


def test_file_with_values_of_another_size_is_refused_at_the_first_pass(saved):
    others = {f"cache.{i}.values": torch.zeros(2, 2, 8, 5) for i in range(2)}
    rewrite(saved, tensors=others)
    with prepare(tiny_llama()) as model:
        cache = SinkCache.load(saved, model)
        with pytest.raises(ValueError, match=r"SinkCache holds .* and was given"):
            feed(model, cache, IDS[:, :1])


def test_hash_is_of_the_model_and_not_of_how_it_is_held():
    model = tiny_llama()
    before = model_hash(model)
    with prepare(model):
        assert model_hash(model) == before
    assert model_hash(tiny_llama().base_model) == before
    model.config._name_or_path = "elsewhere"
    assert model_hash(model) == before


def test_cache_that_no_model_has_read_into_is_not_saved(tmp_path):
    cache = SinkCache(tiny_llama().config, 2, 6)
    with pytest.raises(ValueError, match="no model has read a stream into this SinkCache"):
        cache.save(tmp_path / "it")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_file_that_is_no_saved_cache_is_refused_and_never_executed(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "state")
    with pytest.raises(
        ValueError,
        match=r"state is damaged, or is no saved cache: .|state holds no cache that this streamlm can read",
    ) as caught:
        SinkCache.load(tmp_path / "state", tiny_llama())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_missing_file_and_newer_format_are_reported(saved):
    with pytest.raises(ValueError, match=r"^no such file: elsewhere; correct the path$"):
        SinkCache.load("elsewhere", tiny_llama())
    rewrite(saved, about={"format": "streamlm cache 2"})
    with pytest.raises(ValueError, match="its format is 'streamlm cache 2', and 'streamlm cache 1' was"):
        SinkCache.load(saved, tiny_llama())


def test_damaged_file_is_refused_wherever_it_is_cut_or_changed(saved):
    model, content = tiny_llama(), saved.read_bytes()
    for at in np.random.default_rng(0).integers(len(content), size=60):
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]):
            saved.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"it (was saved with another model|is damaged|holds no)"):
                SinkCache.load(saved, model)


def rewrite(path, about=(), tensors=()):
    """Change what a file says and holds, with a digest that is right."""
    with safe_open(path, framework="pt") as file:
        texts = file.metadata() | dict(about)
        content = {name: file.get_tensor(name) for name in file.keys()} | dict(tensors)  # noqa: SIM118
    texts["digest"] = digest_of(texts, content)
    path.write_bytes(save(content, metadata=texts))


SIZES = (
    '{"n_sink": 2, "window_size": %s, "positions": "cache", "position_limit": 9, "query_block": 9, '
    '"kv_dtype": %s}'
)


@pytest.mark.parametrize(
    "forged",
    [
        {"about": {"settings": SIZES % (10**12, "null")}},
        {"about": {"settings": SIZES % (10**12, '"int8"')}},
        {"about": {"settings": SIZES % ('"6"', "null")}},
        {"about": {"settings": SIZES % (6, '"float4"')}},
        {"about": {"settings": SIZES % (7, "null")}},
        {"about": {"settings": "[" * 100_000}},
        {"about": {"settings": "{}"}},
        {"tensors": {"cache.counts": torch.tensor([2**62, 0])}},
        {"tensors": {"cache.counts": torch.tensor([5, 9])}},
        {"tensors": {"cache.counts": torch.tensor([5.0, 0.0])}},
        {"tensors": {"cache.pads": torch.tensor([5, -1])}},
        {"tensors": {"cache.pads": torch.tensor([5, 10**6])}},
        {"tensors": {"cache.0.keys": torch.zeros(2, 2, 8, 3)}},
        {"tensors": {"cache.0.keys": torch.zeros(8)}},
        {"tensors": {"cache.1.values": torch.zeros(2, 2, 8, 8, dtype=torch.float64)}},
        {"tensors": {"cache.0.more": torch.zeros(1)}},
        {"tensors": {"cache.7.keys": torch.zeros(2, 2, 8, 8)}},
        {"tensors": {"cache.keys": torch.zeros(1)}},
        {"tensors": {"cache.0.keys": torch.zeros(2, 2, 10**9, 0)}},
        {"tensors": {"cache.0.sinks": torch.zeros(2, 2, 2, 0)}},
        {"tensors": {"cache.pads": torch.tensor([0, 1, 2])}},
        {"about": {"settings": (SIZES % (6, "null")).replace('"query_block": 9', '"query_block": 0')}},
        {"about": {"settings": (SIZES % (6, "null")).replace('"query_block": 9', '"query_block": 1.5')}},
        {
            "about": {
                "settings": (SIZES % (6, "null")).replace('"position_limit": 9', '"position_limit": NaN')
            }
        },
    ],
)
def test_forged_file_is_refused_before_it_takes_memory(saved, monkeypatch, forged):
    rewrite(saved)
    assert SinkCache.load(saved, tiny_llama()).n_held == 8
    rewrite(saved, **forged)
    if "1000000000000" in str(forged):
        monkeypatch.delattr("streamlm.cache.layers.Store")
    with pytest.raises(
        ValueError, match=r"^the saved cache \S*it is damaged, or is no saved cache: "
    ) as caught:
        SinkCache.load(saved, tiny_llama())
    assert "\n" not in str(caught.value)
