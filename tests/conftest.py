"""Tiny random models, built here, fresh for every test; and small archives."""

import io
import os
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in these tests may ask a model hub
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels on a CPU; read when Triton is first imported, by anything

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from streamlm.config import Compute, StreamConfig, find_method
from streamlm.measure.perplexity import measure_perplexity

settings.register_profile("streamlm", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("streamlm")

VOCAB = 61


def pytest_collection_modifyitems(items):
    """kvpress changes transformers for the rest of the process once imported: its tests come last."""
    items.sort(key=lambda item: item.get_closest_marker("kvpress") is not None)


@pytest.fixture(autouse=True)
def _kvpress_only_where_it_is_marked(request):
    yield
    marked = request.node.get_closest_marker("kvpress")
    assert marked or "kvpress" not in sys.modules, "mark this test kvpress: it imported it"


@pytest.fixture(autouse=True)
def _threads_stay():
    """Commands in this process take every core, for good: the tests after them would wait for each other."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny_llama(**changes):
    """A grouped-query Llama: 2 layers, 4 query and 2 key heads, head size 8."""
    torch.manual_seed(0)
    options = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.4, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


def tiny_neox(**changes):
    """A GPT-NeoX with 25 % rotary features: 2 layers, 4 heads of size 8.

    It is the default: another share, saved and loaded again, comes back as this one (transformers 5.2).
    """
    torch.manual_seed(0)
    options = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.4,
    }  # fmt: skip
    return GPTNeoXForCausalLM(GPTNeoXConfig(**options | changes)).eval()


MODELS = {"llama": tiny_llama, "neox": tiny_neox}


def use_float64_angles(model):
    """Make `model` float64 throughout: transformers forms rotary angles in float32 whatever the weights."""
    model.double()
    rotary = model.base_model.rotary_emb
    inv_freq, scaling = rotary.inv_freq.double(), rotary.attention_scaling

    def forward(x, position_ids):
        angles = position_ids.double()[..., None] * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)

    rotary.inv_freq = inv_freq
    rotary.forward = forward
    return model


@pytest.fixture(params=sorted(MODELS))
def model(request):
    return MODELS[request.param]()


MEMBERS = {"demo/b.txt": b"second", "demo/a.txt": b"first", "demo/note.md": b"third"}


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(params=[(make_zip, "demo.whl"), (make_tar, "demo.tar.gz")], ids=["wheel", "tar.gz"])
def archive(request, tmp_path):
    make, name = request.param
    return make(tmp_path / name, MEMBERS)


@dataclass(frozen=True)
class Undisturbed:
    """The small experiment (see small_run.py) after a run of so many seconds."""

    place: Path
    seconds: float
    contents: dict


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    from small_run import TARGETS, contents, make_project, run

    place = make_project(tmp_path_factory.mktemp("undisturbed"))
    begin = time.monotonic()
    done, said = run(place, *TARGETS)
    assert done, said
    return Undisturbed(place, time.monotonic() - begin, contents(place))


@dataclass(frozen=True)
class Second(Undisturbed):
    """Another run of it, during which the same command was typed once more."""

    refused: bool
    refusal: str


@pytest.fixture(scope="session")
def second(tmp_path_factory):
    from small_run import TARGETS, contents, make_project, run, start

    place = make_project(tmp_path_factory.mktemp("second"))
    begin = time.monotonic()
    first = start(place, *TARGETS, said="first.txt")
    while not any((place / ".snakemake" / "locks").glob("*")):
        assert first.poll() is None, (place / "first.txt").read_text()
        time.sleep(0.05)
    done, refusal = run(place, *TARGETS)
    assert first.wait() == 0, (place / "first.txt").read_text()
    return Second(place, time.monotonic() - begin, contents(place), not done, refusal)


@pytest.fixture(scope="session")
def pythia(tmp_path_factory):
    from hub_files import pythia_files

    return pythia_files(tmp_path_factory.mktemp("pythia"))


@pytest.fixture
def hub(pythia):
    from hub_files import BOOKS, PG19, PYTHIA, WIKITEXT, parquet, wikitext_files
    from hub_server import Hub

    with Hub() as hub:
        hub.add("models", PYTHIA["repo"], pythia, PYTHIA["revision"])
        hub.add("datasets", WIKITEXT["repo"], wikitext_files(), WIKITEXT["revision"])
        books = {"data/test-00000-of-00001-29a571947c0b5ccc.parquet": parquet(text=BOOKS, url=["a", "b"])}
        hub.add("datasets", PG19["repo"], {"README.md": b"# PG19", **books}, PG19["revision"])
        yield hub


def score_by_name(*, method, n_sink, window_size, dtype="float32", device="cpu", torch_threads=1, **options):
    """Score a stream with everything given by name, as a config does: return record and losses."""
    return measure_perplexity(
        method=find_method(method),
        cfg=StreamConfig(n_sink=n_sink, window_size=window_size),
        compute=Compute(dtype=dtype, device=device, torch_threads=torch_threads),
        **options,
    )


PROSE = "The rain fell on us all. We went home, and nobody said a word! Was it late? The clock had stopped. "


@pytest.fixture(scope="session")
def prose_model(tmp_path_factory):
    """The folder of a tiny model with a tokenizer of bytes."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("prose") / "model", max_position_embeddings=3000)


@pytest.fixture(scope="session")
def prose_ids():
    """Token ids of sentences, for each of two texts."""
    from tiny_model import byte_tokenizer

    texts = {"English Wikipedia sample": "end", "Shakespeare, Project Gutenberg": "fin"}
    return {
        name: np.array(byte_tokenizer()(PROSE * 30 + word)["input_ids"], np.int64)
        for name, word in texts.items()
    }
