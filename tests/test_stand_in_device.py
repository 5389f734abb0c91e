"""On one device that is not the host, no tensor meets one of another, is copied to another, or is read back.

torch's `meta` stands in for a GPU. Its tensors have no content: what would wait for a GPU to read one fails.
"""

import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import tiny_llama, tiny_neox
from families import build
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamlm.cache import attention
from streamlm.cache.head import head_of
from streamlm.cache.plan import Padding
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache

DEVICE = torch.device("meta")
N_SINK, WINDOW = 2, 254
MODELS = {
    "llama": tiny_llama,
    "gpt_neox": tiny_neox,
    "no rotation": lambda: build("smollm3"),
    "sliding, several rotations": lambda: build("gemma3_text 6"),
    "learned sinks": lambda: build("gpt_oss 6").bfloat16(),  # experts have no float32 product there
    "latents": lambda: build("youtu"),
}


class Operations(TorchDispatchMode):
    """Notes what leaves the device, and the elements of the largest new tensor."""

    def __init__(self):
        super().__init__()
        self.faults, self.largest, self.count = [], 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        self.count += 1
        if any(tensor.device.type != DEVICE.type for tensor in tensors):
            self.faults.append(f"{operation} on {sorted({str(tensor.device) for tensor in tensors})}")
        if not operation.is_view:
            made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and not _is_among(x, (args, kwargs))]
            self.largest = max([self.largest, *(tensor.numel() for tensor in made)])
        return out


def _is_among(tensor, given):
    return any(tensor is other for other in tree_leaves(given))


class FromHost(TorchFunctionMode):
    """Notes a tensor made on the device of numbers of the host, which the dispatcher does not show."""

    def __init__(self, faults):
        super().__init__()
        self.faults = faults

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and not isinstance(args[0], Tensor):
            self.faults.append(f"{function.__name__}({args[0]}) copies from the host")
        return function(*args, **(kwargs or {}))


@contextmanager
def watched():
    with Operations() as operations, FromHost(operations.faults):
        yield operations
    assert operations.count > 50
    assert not operations.faults, "; ".join(operations.faults)


@pytest.fixture(params=sorted(MODELS))
def model(request, monkeypatch):
    """A model that was prepared on the host, moved to the stand-in, and used there once."""
    made = MODELS[request.param]()
    with prepare(made), torch.inference_mode():
        code = sys.modules[type(made).__module__]  # autocast knows no such device
        monkeypatch.setattr(code, "maybe_autocast", lambda **_: nullcontext())
        cache = SinkCache(made.to(DEVICE).config, N_SINK, WINDOW, position_limit=0)
        for _ in range(3):  # frequencies follow the model when they are first used
            made(ids(300), past_key_values=cache)
        yield made


def ids(n_tokens, batch=1):
    return torch.zeros(batch, n_tokens, dtype=torch.int64, device=DEVICE)


def full_cache(model, **options):
    cache = SinkCache(model.config, N_SINK, WINDOW, **options)
    model(ids(300), past_key_values=cache)
    return cache


@pytest.fixture(params=[False, True], ids=["in products", "fused"])
def attends(request, monkeypatch):
    """Both ways to attend to a block of queries."""
    monkeypatch.setattr(attention, "_is_fused", lambda device: request.param)


@pytest.mark.usefixtures("attends")
@pytest.mark.parametrize("kv_dtype", [None, "int8", "bfloat16"])
def test_scoring_stays_on_the_device(model, kv_dtype):
    cache, head = SinkCache(model.config, N_SINK, WINDOW, kv_dtype=kv_dtype, position_limit=0), head_of(model)
    with watched():
        for n_tokens in (1, 300, 300, 300):  # the last ones move the stream back to small positions
            hidden = model.base_model(ids(n_tokens), past_key_values=cache).last_hidden_state[0]
            torch.nn.functional.cross_entropy(head(hidden), ids(n_tokens)[0], reduction="none")
    assert cache._state.shift


@pytest.mark.parametrize("kv_dtype", [None, "int8", "bfloat16"])
def test_decoding_stays_on_the_device(model, kv_dtype):
    cache = SinkCache(model.config, N_SINK, WINDOW, kv_dtype=kv_dtype, position_limit=0)
    with watched():
        for n_tokens in (1, 1, 1, WINDOW - 2, 1, 1, 1, WINDOW, *[1] * 10):
            model(ids(n_tokens), past_key_values=cache)
    assert cache._state.shift


@pytest.mark.usefixtures("attends")
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_padded_batch_stays_on_the_device(model, kv_dtype):
    cache = SinkCache(model.config, N_SINK, WINDOW, kv_dtype=kv_dtype)
    # Pads are read from the mask of the prompt once, before anything is computed.
    cache._state.padding = Padding(torch.empty(2, dtype=torch.int64, device=DEVICE), min=0, max=5)
    with watched():
        model(ids(20, batch=2), past_key_values=cache)
        for _ in range(3):
            model(ids(1, batch=2), past_key_values=cache)
        model(ids(300, batch=2), past_key_values=cache)
        model(ids(1, batch=2), past_key_values=cache)


def test_step_of_a_full_cache_makes_no_tensor_as_large_as_a_window(model):
    cache = full_cache(model)
    with watched() as operations:
        model(ids(1), past_key_values=cache)
    smallest = min(layer.keys.numel() for layer in cache.layers if layer.cfg.window_size == WINDOW)
    assert operations.largest < smallest


def test_memory_of_a_full_cache_stays(model):
    cache = full_cache(model)
    before = [(store.keys, store.values, store.sinks) for store in cache._stores]
    for _ in range(3):
        model(ids(1), past_key_values=cache)
    after = [(store.keys, store.values, store.sinks) for store in cache._stores]
    assert all(one is other for one, other in zip(tree_leaves(before), tree_leaves(after), strict=True))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda x: x.cpu(), "Cannot copy out of meta tensor"),
        (lambda x: x.sum().item(), "cannot be called on meta tensors"),
        (lambda x: bool(x[0, 0]), "cannot be called on meta tensors"),
        (lambda x: x + torch.zeros(()), r"aten\.add\.Tensor on \['cpu', 'meta'\]"),
        (lambda x: torch.zeros(3).to(DEVICE), r"aten\.\S+ on \['cpu', 'meta'\]"),
    ],
)
def test_fault_is_noticed(fault, said):
    with pytest.raises(Exception, match=said), watched():
        for _ in range(60):
            ids(3) + 1
        fault(ids(3))


def test_copy_from_the_host_is_noticed():
    with pytest.raises(AssertionError, match="copies from the host"), watched():
        for _ in range(60):
            ids(3) + 1
        torch.tensor([1], device=DEVICE)
