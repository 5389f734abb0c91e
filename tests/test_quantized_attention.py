"""The kernel that reads a quantised window attends as the portable form does, in Triton's interpreter too."""

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from conftest import MODELS
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sink_cache import feed, random_ids
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from streamlm.cache import layers
from streamlm.cache.prepare import prepare
from streamlm.cache.ring import QuantizedRing
from streamlm.cache.sink_cache import SinkCache

pytest.importorskip("triton", reason="the kernel is Triton's: `make test-latest` has it")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


def slow_attention(query, keys, values, visible, scaling, softcap, sink_logits):
    """Attend query by query, head by head, in float64."""
    batch, n_heads, _, _ = query.shape
    out = torch.empty(batch, n_heads, 1, values.shape[3], dtype=torch.float64)
    for b in range(batch):
        for h in range(n_heads):
            own = h * keys.shape[1] // n_heads
            scores = (keys[b, own].double() @ query[b, h, 0].double()) * scaling
            if softcap is not None:
                scores = softcap * (scores / softcap).tanh()
            if visible is not None:
                scores[~visible[b, 0, 0]] = -torch.inf
            weights = scores.exp()
            whole = weights.sum() + (0 if sink_logits is None else sink_logits[h].double().exp())
            out[b, h, 0] = (weights / whole) @ values[b, own].double()
    return out


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    sizes=st.sampled_from([(8, 8), (20, 12), (64, 64)]),
    n_sink=st.integers(0, 3),
    window=st.integers(1, 40),
    empty=st.integers(0, 9),
    rows_differ=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
    has_logits=st.booleans(),
    stretch=st.sampled_from([16, 32, 512]),
    seed=st.integers(0, 9),
)
def test_kernel_attends_as_the_definition_says(
    batch, heads, sizes, n_sink, window, empty, rows_differ, softcap, has_logits, stretch, seed
):
    made = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=made).to(DEVICE)

    (n_heads, n_kv), (size, out_size), n_held = heads, sizes, max(1, window - empty)
    query = drawn(batch, n_heads, 1, size)
    sinks = drawn(batch, n_kv, n_sink, size), drawn(batch, n_kv, n_sink, out_size)
    rings = []
    for length in (size, out_size):
        ring = QuantizedRing(drawn(batch, n_kv, 1, length), window, torch.int8)
        ring.put(torch.arange(window, device=DEVICE), drawn(batch, n_kv, window, length))
        rings.append(ring)
    visible = None
    if rows_differ:
        visible = torch.rand(batch, 1, 1, n_sink + n_held, generator=made).to(DEVICE) < 0.5
        visible[..., -1] = True
    logits = drawn(n_heads) if has_logits else None
    from streamlm.cache import quantized_attention

    with (
        patch.object(quantized_attention, "STRETCH", stretch),
        patch.object(quantized_attention, "TILE_NUMBERS", 16 * size),  # the smallest tile
    ):
        found = quantized_attention.attend_codes(
            query, sinks, *zip(*((ring.codes, ring.scales) for ring in rings), strict=True), n_held, visible,
            0.3, softcap=softcap, sink_logits=logits,
        )  # fmt: skip
    keys, values = (
        torch.cat((fixed, ring.read(n_held)), dim=2) for fixed, ring in zip(sinks, rings, strict=True)
    )
    expected = slow_attention(
        *(x.cpu() for x in (query, keys, values)),
        None if visible is None else visible.cpu(),
        0.3,
        softcap,
        None if logits is None else logits.cpu(),
    )
    assert_close(found.cpu().double(), expected, rtol=0, atol=2e-6)


FAMILIES = {
    **MODELS,
    "soft caps": lambda: build("gemma2 64"),
    "repeats what is stored": lambda: build("jetmoe"),
    "joins what is stored": lambda: build("youtu"),
}


@pytest.mark.parametrize("pads", [None, (0, 7)])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_decodes_by_the_kernel_as_in_the_portable_form(family, pads):
    model = FAMILIES[family]().float().to(DEVICE)
    ids = random_ids(2, 40).to(DEVICE)
    mask = None if pads is None else (torch.arange(40) >= torch.tensor(pads)[:, None]).to(DEVICE)
    from streamlm.cache import quantized_attention

    def decoded(is_fused):
        cache = SinkCache(model.config, 3, 20, kv_dtype="int8")
        with (
            patch.object(layers, "_reads_codes", lambda ring: is_fused),
            patch.object(quantized_attention, "STRETCH", 64),  # one tile: fewer take long to interpret
        ):
            return feed(model, cache, ids, [10, *[1] * 30], mask), cache

    with prepare(model), torch.inference_mode():
        (found, cache), (expected, _) = decoded(is_fused=True), decoded(is_fused=False)
    assert_close(found, expected, rtol=0, atol=1e-4)
    by_kernel = [layer.is_passed_on for layer in cache.layers]
    assert by_kernel == [family in (*MODELS, "soft caps")] * len(cache.layers)


def test_kernel_is_taken_for_bytes_on_a_gpu_without_gradients():
    def ring(device="cuda", codes=torch.int8, dtype=torch.bfloat16):
        return SimpleNamespace(codes=SimpleNamespace(device=torch.device(device), dtype=codes), dtype=dtype)

    with torch.no_grad():
        assert layers._reads_codes(ring())
        assert not layers._reads_codes(ring(device="cpu"))
        assert not layers._reads_codes(ring(codes=torch.bfloat16))
        assert not layers._reads_codes(ring(dtype=torch.float64))
        with patch.object(layers, "_has_triton", lambda: False):
            assert not layers._reads_codes(ring())
        traced = make_fx(lambda x: x + layers._reads_codes(ring()))(torch.zeros(1))
    assert traced(torch.ones(1)).item() == 1
    assert not layers._reads_codes(ring())


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from streamlm.cache.quantized_attention import STRETCH, attend_stretch
numbers = {"n_heads": "i32", "n_slots": "i32", "n_held": "i32", "scaling": "fp32", "softcap": "fp32"}
for dtype, size, tile in (("bf16", 64, 64), ("fp16", 128, 64), ("fp32", 256, 32), ("bf16", 512, 16)):
    constants = {"ROWS_DIFFER": True, "G": 3, "D": size, "DV": size, "G_SIDE": 16, "D_SIDE": size,
                 "DV_SIDE": size, "STRETCH": STRETCH, "TILE": tile}
    pointers = {"query": dtype, "key": "i8", "key_scale": "fp32", "value": "i8", "value_scale": "fp32",
                "visible": "i1", "top": "fp32", "total": "fp32", "mixed": "fp32"}
    signature = {f"{name}_ptr": f"*{kind}" for name, kind in pointers.items()} | numbers
    signature |= dict.fromkeys(constants, "constexpr")
    for capability in (80, 90):
        source = ASTSource(fn=attend_stretch, signature=signature, constexprs=constants)
        made = compile(source, target=GPUTarget("cuda", capability, 32))
        print(dtype, size, len(made.asm["cubin"]), made.metadata.shared)
"""


def test_kernel_compiles_for_gpus_without_one(tmp_path):
    changed = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | changed, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        _, _, code, fast_memory = line.split()
        assert int(code) > 1000
        assert int(fast_memory) <= 99 * 1024  # bytes that smaller GPUs have
