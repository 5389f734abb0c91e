"""What people import: it is all there, it loads when it is used, and what is internal is underscored."""

import subprocess
import sys
from importlib import import_module
from importlib.resources import files

import pytest
from conftest import tiny_llama
from transformers import Cache

import streamlm
from streamlm import SinkCache


@pytest.mark.parametrize("name", streamlm.FRONT_DOOR)
def test_name_of_the_front_door_is_that_of_its_module(name):
    assert getattr(streamlm, name) is getattr(import_module(streamlm.FRONT_DOOR[name]), name)
    assert name in dir(streamlm)


def test_front_door_and_its_types_name_the_same():
    assert {*streamlm.__all__} == {*streamlm.FRONT_DOOR, "__version__"}
    assert (files("streamlm") / "py.typed").is_file()
    with pytest.raises(AttributeError, match="module 'streamlm' has no attribute 'SinkCash'"):
        _ = streamlm.SinkCash


def test_import_alone_loads_no_torch_and_a_name_does():
    code = "import sys, streamlm; print('torch' in sys.modules, streamlm.{}, 'torch' in sys.modules)"
    for name, loads in (("StreamConfig", "False"), ("SinkCache", "True")):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True)
        assert done.stdout.split()[0] == "False"
        assert done.stdout.split()[-1] == loads


def test_sink_cache_shows_what_its_reference_documents_and_no_more():
    cache = SinkCache(tiny_llama().config)
    public = {name for name in dir(cache) if not name.startswith("_")} - set(dir(Cache))
    usual = {"layers", "layer_class_to_replicate", "offloading", "only_non_sliding", "prefetch_stream"}
    assert public - usual == {
        "cfg", "capacity", "geometries", "n_held", "mean_held", "nbytes", "longest_pass", "state_dict",
        "load_state_dict", "settings", "save", "load",
    }  # fmt: skip
