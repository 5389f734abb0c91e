"""Two runs on one machine differ in measured times and in nothing else."""

import subprocess
import sys

import pytest
from small_run import RESULTS, TARGETS

pytestmark = pytest.mark.slow

# What needs no measured time; the main comparison shows how long scoring took.
DRAW = """
import sys
from streamlm.figures.catalogue import find_figure
from streamlm.figures.style import save_figure
from streamlm.records.files import read_record
name, record, target = sys.argv[1:]
save_figure(target, find_figure(name).plot([read_record(record)]))
"""


def test_two_runs_give_the_same_records_and_losses(undisturbed, second):
    assert any(name.endswith(".npy") for name in second.contents)
    # 4 runs, baseline, result, 2 ablations
    assert sum(name.endswith(".json") for name in second.contents) == 8
    assert second.contents == undisturbed.contents


def test_figures_without_times_are_the_same_bytes(undisturbed, second):
    for target in TARGETS[1:]:
        assert (second.place / target).read_bytes() == (undisturbed.place / target).read_bytes()


@pytest.mark.parametrize("kind", ["ablation_window_size", "ablation_n_sink"])
def test_figure_drawn_again_from_its_record_is_the_same_bytes(undisturbed, tmp_path, kind):
    record = undisturbed.place / RESULTS / "streaming_llm" / f"{kind}.json"
    again = tmp_path / "again.png"
    subprocess.run([sys.executable, "-c", DRAW, kind, record, again], cwd=undisturbed.place, check=True)
    assert again.read_bytes() == (undisturbed.place / RESULTS / "figures" / f"{kind}.png").read_bytes()
