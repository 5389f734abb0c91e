import pytest
import reference
import torch
from conftest import MODELS
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from streamlm.cache.linear import FEW_ROWS, SplitLinear, split_linears
from streamlm.cache.models import read_model

with_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")


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
    layer = SplitLinear(n_in, n_out, bias=bias, dtype=torch.float64)
    x = torch.randn(rows, n_in, dtype=torch.float64)
    out = layer(x[None] if tokens_last else x[:, None])
    assert out.shape == ((1, rows, n_out) if tokens_last else (rows, 1, n_out))
    if rows:
        assert_close(
            out.reshape(rows, n_out), reference.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize(
    ("n_rows", "dtype", "split"),
    [
        (1, torch.float32, True),
        (FEW_ROWS, torch.float64, True),
        (FEW_ROWS + 1, torch.float32, False),
        (1, torch.bfloat16, False),
    ],
)
def test_only_few_rows_of_full_precision_are_split(n_rows, dtype, split):
    layer, called = SplitLinear(32, 48, dtype=dtype), Called()
    with called, torch.inference_mode():
        layer(torch.randn(n_rows, 32, dtype=dtype))
    assert ("bmm" in called.names) == split


@with_mkl
def test_a_model_that_is_read_splits_its_linear_layers_and_keeps_their_weights(tmp_path):
    written = MODELS["llama"]()
    written.save_pretrained(tmp_path)
    model = read_model(tmp_path, dtype=torch.float32, device="cpu")
    assert_close(model.state_dict(), written.state_dict(), rtol=0, atol=0)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert {type(module) for module in linears} == {SplitLinear}
    assert model.get_output_embeddings() in linears


@with_mkl
def test_a_class_of_its_own_is_left_alone():
    class Quantised(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Quantised(2, 2))
    split_linears(model)
    assert [type(module) for module in model] == [SplitLinear, Quantised]


def test_a_split_layer_is_compiled_whole():
    layer, x = SplitLinear(32, 48), torch.randn(1, 1, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert_close(compiled(x), layer(x), rtol=0, atol=0)
