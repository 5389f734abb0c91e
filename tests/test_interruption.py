"""A run that is killed goes on, by the documented commands, to the records of one that was not."""

import random
import shutil
import signal
import subprocess
from itertools import chain

import pytest
from small_run import TARGETS, contents, end_group, leftovers, make_project, run, start

MOMENTS, TOGETHER = 20, 3  # kills in all, and in one run


def rounds():
    """Return the moments of every run, as shares of its duration: one in each of its stretches, seeded."""
    draw = random.Random(0)
    counts = [min(TOGETHER, MOMENTS - first) for first in range(0, MOMENTS, TOGETHER)]
    return [[(i + draw.random()) / count for i in range(count)] for count in counts]


def test_moments_are_as_many_as_promised_and_spread():
    moments = list(chain.from_iterable(rounds()))
    assert len(moments) == MOMENTS
    assert {int(5 * moment) for moment in moments} == set(range(5))


def interrupt(place, undisturbed, moment, number):
    """Run until a moment of progress and send a signal; what is then there must be whole."""
    while True:
        done = len(contents(place)) / len(undisturbed.contents)
        process = start(place, *TARGETS)
        try:
            process.wait(timeout=0.5 + max(0.0, moment - done) * undisturbed.seconds)
        except subprocess.TimeoutExpired:
            break
        assert process.returncode == 0, (place / "said.txt").read_text()
        for made in ("results", "data/tokens", "data/readme"):  # it was quicker this time: begin anew
            shutil.rmtree(place / made)
    end_group(process, number)
    found = contents(place)
    assert found == {name: undisturbed.contents[name] for name in found}


def go_on(place):
    """Type the same command again, and what its message says if it is refused."""
    done, said = run(place, *TARGETS)
    if not done:
        assert "It can be removed with the --unlock argument" in said
        assert "Traceback" not in said
        assert run(place, "--unlock")[0]
        done, said = run(place, *TARGETS)
    assert done, said


@pytest.mark.parametrize(
    "moments",
    [pytest.param(moments, marks=[pytest.mark.slow] if i else []) for i, moments in enumerate(rounds())],
)
def test_killed_run_ends_in_the_same_records(undisturbed, tmp_path, moments):
    place = make_project(tmp_path)
    for moment in moments:
        interrupt(place, undisturbed, moment, signal.SIGKILL)
        if moment != moments[-1]:
            assert run(place, "--unlock")[0]
    go_on(place)
    assert contents(place) == undisturbed.contents
    assert leftovers(place) == []


@pytest.mark.slow
def test_run_that_is_told_to_stop_ends_in_the_same_records(undisturbed, tmp_path):
    place = make_project(tmp_path)
    for moment, number in ((0.3, signal.SIGINT), (0.7, signal.SIGTERM)):
        interrupt(place, undisturbed, moment, number)
        assert not any((place / ".snakemake" / "locks").glob("*")), f"{number.name} leaves a lock"
    go_on(place)
    assert contents(place) == undisturbed.contents
    assert leftovers(place) == []
