"""Killed while it writes, a command leaves the old file or the new one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from command import ENVIRONMENT
from conftest import tiny_llama
from project import ROOT
from test_hostile import mount  # noqa: F401, a fixture
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.figures.style import save_figure

# Each writes one content after the other until it is killed.
SAVE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from streamlm.commands.output_types import CONVERSATION
from streamlm.commands.outputs import Outputs
from streamlm.commands.session import save
print("ready", flush=True)
while True:
    for letter in "ab":
        talk = SimpleNamespace(messages=[{"role": "user", "content": letter * 2_000_000}])
        save(talk, Outputs(force=True).check(Path("it"), CONVERSATION))
"""


DRAW = """
from matplotlib.figure import Figure
from streamlm.figures.style import save_figure
from pathlib import Path
print("ready", flush=True)
while True:
    for width in (3, 4):
        save_figure("it", Figure((width, 3)), ".png")
"""


# Goes on with a saved cache, and saves it after every token.
GO_ON = """
import torch
from conftest import tiny_llama
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
with prepare(tiny_llama()) as model, torch.inference_mode():
    print("ready", flush=True)
    while True:
        cache = SinkCache.load("it", model)
        model(torch.tensor([[cache.get_seq_length() % 30]]), past_key_values=cache)
        cache.save("it")
"""


def killed(args, place, delay, look=lambda: None):
    """Kill a process and its children some time after it is ready; until then, look at what it writes."""
    process = subprocess.Popen(
        args,
        cwd=place,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdout.readline()
    until = time.monotonic() + delay
    while time.monotonic() < until:
        look()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def seen_while_killed(program, place, moment):
    """Return every content that the file `it` had while a program that writes it ran and was killed."""
    seen, file = set(), place / "it"
    killed([sys.executable, "-c", program], place, moment, lambda: seen.add(file.read_bytes()))
    return seen | {file.read_bytes()}


KILLS = [pytest.param(n, marks=[pytest.mark.slow] if n > 1 else []) for n in (1, 19)]


def moments(count):
    draw = random.Random(count)
    return [0.1 + 0.3 * draw.random() for _ in range(count)]


@pytest.mark.parametrize("count", KILLS)
def test_killed_save_leaves_the_old_conversation_or_the_new_one(tmp_path, count):
    whole = {f"user: {letter * 2_000_000}\n" for letter in "ab"}
    (tmp_path / "it").write_text(min(whole))
    for moment in moments(count):
        assert seen_while_killed(SAVE, tmp_path, moment) <= {text.encode() for text in whole}


@pytest.mark.parametrize("count", KILLS)
def test_killed_saving_and_loading_loses_no_stream(tmp_path, count):
    with prepare(tiny_llama()) as model, torch.inference_mode():

        def read(cache, first, last):
            for token in range(first, last):
                model(torch.tensor([[token % 30]]), past_key_values=cache)

        whole = SinkCache(model.config, 2, 400)
        read(whole, 0, 1)
        whole.save(tmp_path / "it")
        for moment in moments(count):
            killed([sys.executable, "-c", GO_ON], tmp_path, moment)
            left = SinkCache.load(tmp_path / "it", model)
            before, after = whole.get_seq_length(), left.get_seq_length()
            assert after > before
            read(whole, before, after)
            assert_close(left.state_dict(), whole.state_dict())
        SinkCache.load(tmp_path / "it", model).save(tmp_path / "it")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]  # what kills left is cleared


@pytest.mark.parametrize("count", KILLS)
def test_killed_drawing_leaves_the_old_figure_or_the_new_one(tmp_path, count):
    from matplotlib.figure import Figure

    whole = set()
    for width in (3, 4):
        save_figure(tmp_path / "it.png", Figure((width, 3)))
        whole.add((tmp_path / "it.png").read_bytes())
    (tmp_path / "it").write_bytes(min(whole))
    for moment in moments(count):
        assert seen_while_killed(DRAW, tmp_path, moment) <= whole


@pytest.mark.parametrize("count", KILLS)
def test_killed_publishing_leaves_old_files_or_new_ones(tmp_path, count):
    shutil.copy(ROOT / "Makefile", tmp_path)
    figures, published = tmp_path / "results/figures", tmp_path / "docs/results"
    figures.mkdir(parents=True)
    names = [*(f"{n}.png" for n in range(9)), "experiment_summary.md"]
    for moment, letter in zip(moments(count), "abcdefghijklmnopqrs", strict=False):
        for name in [*names, "comparison_metrics_table.png"]:
            (figures.parent if name.endswith(".md") else figures).joinpath(name).write_bytes(
                letter.encode() * 4_000_000
            )
        # Its first line is that of mkdir.
        killed(["make", "--old-file=all", "publish"], tmp_path, moment / 3)
        found = {path.name: path.read_bytes() for path in published.glob("[!.]*")}
        assert found.keys() <= set(names)
        assert all(len(set(each)) == 1 and len(each) == 4_000_000 for each in found.values())
    done = subprocess.run(["make", "--old-file=all", "publish"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in published.iterdir()) == sorted(names)
