import copy

import pytest
import reference
import torch
from conftest import MODELS
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from streamlm import provenance
from streamlm.cache import attention, products
from streamlm.cache.models import read_model
from streamlm.cache.products import (
    FEW_ROWS,
    FastLinear,
    batched_linear,
    linear,
    products_of,
    use_fast_linears,
)

MAKERS = pytest.mark.parametrize("maker", ["AuthenticAMD", "GenuineIntel"])


@pytest.fixture
def made_by(monkeypatch):
    """Let the processor be of a maker, and torch have MKL."""

    def pretend(maker):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
        monkeypatch.setattr(products, "processor_maker", lambda: maker)

    return pretend


class Called(TorchDispatchMode):
    """The names of the operators that run."""

    def __enter__(self):
        self.names = set()
        return super().__enter__()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__)
        return operator(*args, **kwargs or {})


@given(
    rows=st.integers(0, FEW_ROWS + 1),
    n_in=st.integers(1, 12),
    n_out=st.sampled_from((1, 2, 7, 16, 17, 24, 48)),
    bias=st.booleans(),
    tokens_last=st.booleans(),
)
def test_few_rows_give_the_sums_written_out(rows, n_in, n_out, bias, tokens_last):
    layer = FastLinear(n_in, n_out, bias=bias, dtype=torch.float64)
    x = torch.randn(rows, n_in, dtype=torch.float64)
    out = layer(x[None] if tokens_last else x[:, None])
    assert out.shape == ((1, rows, n_out) if tokens_last else (rows, 1, n_out))
    if rows:
        assert_close(
            out.reshape(rows, n_out), reference.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-13
        )


@given(
    shape=st.sampled_from([(5,), (1, 9), (2, 3), (2, 2, 33)]),
    n_in=st.integers(1, 40),
    n_out=st.integers(1, 40),
    bias=st.booleans(),
    is_transposed=st.booleans(),
)
@torch.no_grad()
def test_many_rows_give_the_sums_written_out(shape, n_in, n_out, bias, is_transposed):
    x = torch.randn(*shape, n_in)
    weight = torch.randn(n_in, n_out).mT if is_transposed else torch.randn(n_out, n_in)
    b = torch.randn(n_out) if bias else None
    with Called() as called:
        out = linear(x, weight, b)
    assert "_linear_pointwise" in called.names
    expected = reference.linear(
        *(None if y is None else y.double() for y in (x.reshape(-1, n_in), weight, b))
    )
    assert_close(out.double(), expected.reshape(*shape, n_out), rtol=0, atol=1e-4)


@MAKERS
@given(rows=st.integers(1, 9), heads=st.integers(1, 3), n=st.integers(1, 9), n_in=st.integers(1, 20))
@torch.no_grad()
def test_each_head_is_multiplied_with_its_own_weight(maker, rows, heads, n, n_in):
    x, weights = torch.randn(2, heads, rows, n_in), torch.randn(2, heads, n, n_in)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "processor_maker", lambda: maker)
        out = batched_linear(x, weights)
    assert_close(
        out.double(), torch.einsum("bhri,bhni->bhrn", x.double(), weights.double()), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("n_rows", "dtype", "operator"),
    [
        (1, torch.float32, "bmm"),
        (FEW_ROWS, torch.float64, "bmm"),
        (FEW_ROWS + 1, torch.float32, "_linear_pointwise"),
        (FEW_ROWS + 1, torch.float64, "linear"),
        (1, torch.bfloat16, "linear"),
        (FEW_ROWS + 1, torch.bfloat16, "linear"),
    ],
)
def test_product_is_chosen_by_rows_and_number_type(n_rows, dtype, operator):
    layer, called = FastLinear(32, 48, dtype=dtype), Called()
    with called, torch.inference_mode():
        layer(torch.randn(n_rows, 32, dtype=dtype))
    assert {"bmm", "_linear_pointwise", "linear"} & called.names == {operator}


@pytest.mark.parametrize("n_rows", [1, FEW_ROWS + 1])
def test_gradients_are_those_of_a_plain_layer(n_rows):
    plain = nn.Linear(32, 48)
    fast = copy.deepcopy(plain)
    fast.__class__ = FastLinear
    x = torch.randn(n_rows, 32)
    for layer in (plain, fast):
        layer(x).square().sum().backward()
    assert_close(fast.weight.grad, plain.weight.grad)
    assert_close(fast.bias.grad, plain.bias.grad)


def test_autocast_chooses_the_number_type_as_for_a_plain_layer():
    layer = FastLinear(32, 48)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert {layer(torch.randn(n, 32)).dtype for n in (1, FEW_ROWS + 1)} == {torch.bfloat16}


@MAKERS
def test_layers_of_a_model_that_is_read_are_changed_where_mkl_is_slow(made_by, maker, tmp_path):
    made_by(maker)
    written = MODELS["llama"]()
    written.save_pretrained(tmp_path)
    model = read_model(tmp_path, dtype=torch.float32, device="cpu")
    assert_close(model.state_dict(), written.state_dict(), rtol=0, atol=0)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    is_fast = maker != "GenuineIntel"
    assert {type(module) for module in linears} == {FastLinear if is_fast else nn.Linear}
    assert model.get_output_embeddings() in linears
    assert products_of(model).startswith("oneDNN") == is_fast
    assert products_of(model.bfloat16()) == "as torch chooses"


def test_a_class_of_its_own_is_left_alone(made_by):
    class Quantised(nn.Linear):
        pass

    made_by("AuthenticAMD")
    model = nn.Sequential(nn.Linear(2, 2), Quantised(2, 2))
    use_fast_linears(model)
    assert [type(module) for module in model] == [FastLinear, Quantised]


@pytest.mark.parametrize("n_rows", [1, FEW_ROWS + 1])
def test_a_layer_is_compiled_whole(n_rows):
    layer, x = FastLinear(32, 48), torch.randn(1, n_rows, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert_close(compiled(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("n_rows", [1, 2])
@pytest.mark.parametrize("with_pads", [False, True])
@torch.inference_mode()
def test_one_query_over_many_keys_is_the_same_by_either_product(made_by, monkeypatch, n_rows, with_pads):
    """Where MKL is slow, from many keys on, attention of one query is computed without SDPA."""
    q, k, v = torch.randn(n_rows, 6, 1, 16), torch.randn(n_rows, 2, 40, 16), torch.randn(n_rows, 2, 40, 16)
    visible = torch.rand(n_rows, 1, 1, 40) < 0.7 if with_pads else None
    monkeypatch.setattr(attention, "MANY_KEYS", 80)
    outs = []
    for maker, name in (("GenuineIntel", "scaled_dot_product_attention"), ("AuthenticAMD", "matmul")):
        made_by(maker)
        with Called() as called:
            outs.append(attention.attend_one(q, k, v, visible, 0.25))
        assert name in called.names
    assert_close(*outs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "maker"),
    [
        ("processor : 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n", "x86_64", "AuthenticAMD"),
        ("processor : 0\nvendor_id\t: GenuineIntel\n", "", "GenuineIntel"),
        ("processor : 0\nFeatures : asimd\n", "aarch64", ""),
        (None, "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", "AuthenticAMD"),
        (None, "arm", ""),
    ],
)
def test_maker_of_a_processor_is_read_where_it_says_it(monkeypatch, tmp_path, cpuinfo, processor, maker):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(provenance, "CPU_INFO", file)
    monkeypatch.setattr(provenance.platform, "processor", lambda: processor)
    assert provenance.processor_maker.__wrapped__() == maker
