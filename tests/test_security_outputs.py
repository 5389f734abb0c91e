"""What commands write: nothing of the user's is lost; what cannot be written is said before the work."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from command import ENVIRONMENT, command, only_line, refuse, streamlm
from safetensors.numpy import save_file
from test_hostile import mount  # noqa: F401, a fixture
from tiny_model import write_tiny_model

from streamlm.commands.output_types import (
    CHECKPOINT,
    CONVERSATION,
    FIGURE,
    LOSSES,
    PAGE,
    RECORD,
    RUN_LOSSES,
    RUN_RECORD,
    TEXT,
)
from streamlm.commands.outputs import Outputs
from streamlm.commands.screens import PlainScreen, TerminalScreen
from streamlm.commands.session import Session
from streamlm.records.files import write_json

KINDS = (RECORD, LOSSES, FIGURE, CHECKPOINT, PAGE, TEXT, CONVERSATION, RUN_RECORD, RUN_LOSSES)
SMALL = ("--window-size", 20, "--max-eval-tokens", 60)


@pytest.fixture
def place(tmp_path, model, monkeypatch):
    """A folder with a tiny model, texts, ids and a record; the current one."""
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "t.txt").write_text("hello world " * 60)
    (tmp_path / "p.txt").write_text("hello\n")
    np.save(tmp_path / "i.npy", np.arange(100))
    (tmp_path / "b.json").write_text("{}")
    np.save(tmp_path / "b.npy", np.ones(99, np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TEXTS, IDS = ("--text", "t.txt"), ("--tokens", "i.npy")


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("evaluate", (*TEXTS, "--output", "t.txt")),
        ("evaluate", (*TEXTS, "--checkpoint", "t.txt")),
        ("evaluate", (*IDS, "--per-token", "i.npy")),
        ("evaluate", (*IDS, "--baseline", "b.json", "--output", "b.json")),
        ("evaluate", (*IDS, "--baseline", "b.json", "--per-token", "b.npy")),
        ("evaluate", ("--output", "data/wikitext/sample.json")),
        ("ablate", ("--ablation-type", "n_sink", *TEXTS, "--output", "t.txt")),
        ("compare", (*TEXTS, "--output", "t.txt")),
        ("generate", ("--prompts", "p.txt", "--output", "p.txt")),
        ("watch", (*TEXTS, "--html", "t.txt")),
    ],
)
def test_output_that_is_an_input_is_refused_and_the_input_stays(place, name, args, force):
    before = contents(place)
    done = streamlm(place, name, "--model-name", "m", *args, *force)
    assert f"{args[-1]} is read by this command" in only_line(done, 2)
    assert contents(place) == before


def test_baseline_of_latency_and_runs_of_an_ablation_are_inputs_too(place):
    target = "decoding_latency_dense_1024_sink0.json"
    (place / target).write_text("{}")
    args = (*IDS, "--method", "dense", "--baseline", target, "--output-dir", ".")
    refuse(streamlm(place, "latency", "--model-name", "m", *args), 2, f"{target} is read by this command")
    os.link(place / "i.npy", place / "dense.npy")
    args = ("--ablation-type", "n_sink", *IDS, "--output-dir", ".")
    refuse(streamlm(place, "ablate", "--model-name", "m", *args), 2, "dense.npy is read by this command")


def aliases(place, target):
    """Return other names of a file: links, hard links, ways through other folders."""
    (place / "sub").mkdir()
    (place / "sub" / "inner").mkdir()
    (place / "through").symlink_to(place)
    (place / "to_sub").symlink_to(place / "sub" / "inner")
    (place / "link").symlink_to(target)
    (place / "twice").symlink_to("link")
    os.link(place / target, place / "hard")
    names = ["link", "twice", "hard", f"sub/../{target}", f"through/{target}", f"to_sub/../../{target}"]
    return [*names, str(place / target), f"./{target}"]


def test_input_is_known_by_every_other_name(place):
    for name in aliases(place, "t.txt"):
        with pytest.raises(typer.BadParameter, match="is read by this command"):
            Outputs(inputs=[Path("t.txt")], force=True).check(Path(name), RECORD)


def test_two_outputs_of_one_file_are_refused_by_every_name(place):
    (place / "r.json").touch()
    for name in [*aliases(place, "r.json"), "R.JSON"]:
        outputs = Outputs(force=True)
        outputs.check(Path("r.json"), RECORD)
        with pytest.raises(typer.BadParameter, match="two options name the file"):
            outputs.check(Path(name), RECORD)


def test_nothing_is_written_into_the_folder_of_the_model(place):
    (place / "away.json").symlink_to("m/new.json")
    os.link(place / "m/config.json", place / "hard.json")
    (place / "m/sub").mkdir()
    (place / "m/sub/part.json").write_text("{}")
    names = ["m/config.json", "m/new.json", "m/../m/tokenizer.json", "away.json", "hard.json"]
    for name in [*names, "m/sub/part.json"]:
        with pytest.raises(typer.BadParameter, match=r"is in the folder of the model, m; name a file els"):
            Outputs(model_dir=Path("m"), force=True).check(Path(name), RECORD)
    refuse(
        streamlm(place, "evaluate", "--model-name", "m", *TEXTS, "--output", "m/config.json"),
        2, "is in the folder of the model",
    )  # fmt: skip
    Outputs(model_dir=Path("m")).check(Path("m/sub/results/r.json"), RECORD)


def foreign(place):
    """Make files that no command writes, or writes for another option; return each with a kind it is not."""
    (place / "notes.txt").write_text("mine")
    (place / "list.json").write_text("[1]")
    (place / "object.json").write_text('{"model": "x", "environment": "mine"}')
    (place / "deep.json").write_text("[" * 200_000)
    np.save(place / "ids.npy", np.arange(9))
    np.save(place / "sound.npy", np.array([-0.5, 0.5], np.float32))
    np.save(place / "rows.npy", np.ones((2, 2), np.float32))
    (place / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n mine")
    (place / "paper.pdf").write_bytes(b"%PDF-1.4 mine")
    save_file({"w": np.ones(2)}, place / "w.safetensors")
    (place / "odd.json").mkdir()
    names = ["notes.txt", "list.json", "object.json", "deep.json", "ids.npy", "sound.npy", "rows.npy"]
    return [place / name for name in [*names, "photo.png", "paper.pdf", "w.safetensors"]]


def test_what_is_not_ours_is_replaced_only_by_force(place):
    for path in foreign(place):
        before = path.read_bytes()
        for kind in KINDS:
            with pytest.raises(
                typer.BadParameter, match=r"exists.*; name another file, or replace it with --force"
            ):
                Outputs().check(path, kind)
            assert Outputs(force=True).check(path, kind).real == path
        assert path.read_bytes() == before


def test_refused_before_anything_is_measured_with_status_2(place):
    (place / "notes.txt").write_text("mine")
    asked = ("--model-name", "no-such", *TEXTS)
    line = "notes.txt exists and is no record of streamlm; name another file, or replace it with --force"
    refuse(streamlm(place, "evaluate", *asked, "--output", "notes.txt"), 2, line)
    forced = streamlm(place, "evaluate", *asked, "--output", "notes.txt", "--force")
    assert "no-such" in only_line(forced)
    (place / "story.txt").write_text("mine")
    args = ("generate", "--model-name", "no-such", "--prompt", "a", "--output", "story.txt")
    refuse(streamlm(place, *args), 2, "story.txt exists; name another file, or replace it with --force")
    assert (place / "notes.txt").read_text() == (place / "story.txt").read_text() == "mine"


def test_empty_file_is_replaced_without_a_word(place):
    (place / "made_by_mktemp").touch()
    for kind in KINDS:
        assert Outputs().check(Path("made_by_mktemp"), kind).descriptor is None


def test_commands_replace_their_own_results_without_asking(place):
    model = ("--model-name", "m")
    for args in (
        ("evaluate", *model, *TEXTS, *SMALL, "--output", "r.json", "--per-token", "l.npy"),
        (
            "ablate", *model, *IDS, "--ablation-type", "window_size", "--window-size", 8,
            "--output-dir", "runs",
            "--output", "streaming_llm/ablation_window_size.json", "--figure", "f.pdf",
        ),
        ("latency", *model, *IDS, "--capacity", 16, "--runs", 2, "--method", "dense", "--output-dir", "l"),
        ("figures", "--results-dir", ".", "--output-dir", "drawn"),
    ):  # fmt: skip
        for _ in range(2):
            done = streamlm(place, *args)
            assert done.returncode == 0, done.stderr
    for name, kind in (("r.json", RECORD), ("l.npy", LOSSES), ("f.pdf", FIGURE), ("runs/dense.npy", LOSSES)):
        Outputs().check(Path(name), kind)
    for name, kind in (("r.json", LOSSES), ("l.npy", RECORD), ("drawn/ablation_window_size.png", RECORD)):
        with pytest.raises(typer.BadParameter, match="is no"):  # ours, but of another option
            Outputs().check(Path(name), kind)


def test_link_stays_and_its_target_is_replaced(place):
    (place / "store").mkdir()
    for link, target in (
        ("old.json", "store/old"),
        ("new.json", "store/deeper/new"),
        ("fig.png", "store/fig"),
    ):
        (place / link).symlink_to(target)
    (place / "store" / "old").touch()
    args = (
        "--ablation-type",
        "window_size",
        "--window-size",
        8,
        *IDS,
        "--output",
        "new.json",
        "--figure",
        "fig.png",
    )
    for command_line in (("evaluate", *IDS, *SMALL, "--output", "old.json"), ("ablate", *args)):
        done = streamlm(place, command_line[0], "--model-name", "m", *command_line[1:])
        assert done.returncode == 0, done.stderr
    assert all((place / name).is_symlink() for name in ("old.json", "new.json", "fig.png"))
    assert json.loads((place / "store/old").read_text())["dataset"] == "i.npy"
    assert json.loads((place / "store/deeper/new").read_text())["ablation"] == "window_size"
    assert (place / "store/fig").read_bytes().startswith(b"\x89PNG")


def test_results_folder_that_is_a_link_stays_one(place):
    (place / "elsewhere").mkdir()
    (place / "results").symlink_to("elsewhere")
    write_json(place / "results" / "runs" / "r.json", {})
    assert (place / "results").is_symlink()
    assert (place / "elsewhere/runs/r.json").read_text() == "{}\n"


def run_alone(place, *args, **options):
    """Run a command in a process of its own, whose stdout is a real one."""
    return subprocess.run(command(*args), cwd=place, env=ENVIRONMENT, timeout=60, **options)


EVALUATE = ("evaluate", "--model-name", "m", *IDS, *SMALL)


def test_devices_pipes_and_open_files_are_written_straight(place):
    os.mkfifo(place / "fifo")
    reader = subprocess.Popen(["cat", "fifo"], cwd=place, stdout=subprocess.PIPE)
    with (place / "log").open("a") as log:
        log.write("before\n")
        log.flush()
        args = ("--output", "/dev/stdout", "--per-token", "fifo", "--json")
        done = run_alone(place, *EVALUATE, *args, stdout=log, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    losses = reader.communicate(timeout=10)[0]
    assert losses.startswith(b"\x93NUMPY")
    assert (place / "log").read_text().startswith("before\n{")
    assert (place / "fifo").is_fifo()
    written = json.JSONDecoder().raw_decode((place / "log").read_text().removeprefix("before\n"))[0]
    assert written["dataset"] == "i.npy"


def test_null_device_takes_any_output_and_stays_a_device(place):
    before = Path(os.devnull).stat()
    done = streamlm(place, *EVALUATE, "--output", os.devnull, "--per-token", os.devnull)
    assert done.returncode == 0, done.stderr
    assert os.path.samestat(before, Path(os.devnull).stat())


def test_generate_writes_into_a_fifo_as_it_comes(place):
    os.mkfifo(place / "fifo")
    reader = subprocess.Popen(["cat", "fifo"], cwd=place, stdout=subprocess.PIPE)
    args = ("--prompt", "a", "--max-new-tokens", 3, "--output", "fifo")
    done = streamlm(place, "generate", "--model-name", "m", *args)
    assert done.returncode == 0, done.stderr
    assert reader.communicate(timeout=10)[0].endswith(b"\n")


def test_fifo_without_a_reader_is_said_at_once(place):
    os.mkfifo(place / "fifo")
    for args in (("evaluate", *TEXTS, "--output"), ("generate", "--prompt", "a", "--output")):
        done = streamlm(place, args[0], "--model-name", "no-such", *args[1:], "fifo")
        assert only_line(done).endswith("cannot write fifo: nothing reads from it; start its reader first")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("m", RECORD, "m is a folder; name a file to write"),
        ("t.txt/r.json", RECORD, "a file stands where a folder is needed"),
        ("loop", RECORD, "cannot write loop: Too many levels of symbolic links"),
        ("x" * 300, RECORD, "File name too long"),
        ("/dev/fd/99", RECORD, "cannot write /dev/fd/99: Bad file descriptor"),
        ("fifo", CHECKPOINT, "fifo must be a regular file, since a checkpoint of streamlm is read again"),
        ("fifo", RUN_RECORD, "fifo must be a regular file"),
        (os.devnull, CHECKPOINT, "must be a regular file"),
        ("~nobody-at-all/r.json", RECORD, "is in the home folder of nobody"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(place, name, kind, message):
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "fifo")
    with pytest.raises((typer.BadParameter, OSError, ValueError), match=message):
        Outputs().check(Path(name), kind)


def test_open_file_that_can_only_be_read_is_no_output(place):
    with Path("t.txt").open() as file, pytest.raises(typer.BadParameter, match="open for reading only"):
        Outputs().check(Path(f"/dev/fd/{file.fileno()}"), RECORD)


def test_disk_is_no_output(place, monkeypatch):
    found = SimpleNamespace(st_mode=0o60600, st_size=0)
    monkeypatch.setattr("streamlm.commands.outputs._stat", lambda target: found)
    with pytest.raises(typer.BadParameter, match="is a disk; name a file to write"):
        Outputs(force=True).check(Path("sda"), RECORD)


def test_read_only_disk_is_said_before_the_work(mount, tmp_path):  # noqa: F811
    folder = mount("-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "disk")
    with pytest.raises(OSError, match=r"cannot write .*r.json: Read-only file system; make the folder"):
        Outputs().check(folder / "r.json", RECORD)


CHECK = """
import os, sys
from pathlib import Path
import streamlm.records.files
from streamlm.commands.output_types import RECORD, TEXT
from streamlm.commands.outputs import Outputs
if os.getuid() == 0:  # who may write anywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for kind in (RECORD, TEXT):
    try:
        Outputs(force=True).check(Path(sys.argv[1]), kind)
        print("written")
    except OSError as error:
        print(error)
"""


def test_folder_that_an_ordinary_user_cannot_write_is_said_before_the_work():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "closed").mkdir()
        (folder / "closed" / "old.json").touch(0o444)
        (folder / "closed").chmod(0o555)
        folder.chmod(0o755)
        for target in ("closed/r.json", "closed/deeper/r.json", "closed/old.json"):
            args = [sys.executable, "-c", CHECK, folder / target]
            done = subprocess.run(args, env=ENVIRONMENT, capture_output=True, text=True)
            assert done.stdout.count("Permission denied") == 2, done.stdout + done.stderr
        (folder / "closed").chmod(0o755)


def test_home_is_expanded(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place / "home"))
    done = streamlm(place, *EVALUATE, "--output", "~/r.json")
    assert done.returncode == 0, done.stderr
    assert (place / "home/r.json").is_file()
    assert streamlm(place, "init", "~/mine").returncode == 0
    assert (place / "home/mine/Snakefile").is_file()
    assert not (place / "~").exists()


def test_init_follows_a_link_and_takes_only_an_empty_folder(place):
    (place / "mine").symlink_to("elsewhere")
    done = streamlm(place, "init", "mine")
    assert done.returncode == 0, done.stderr
    assert (place / "mine").is_symlink()
    assert (place / "elsewhere/Snakefile").is_file()
    before = contents(place)
    for name in ("mine", "m", "t.txt", os.devnull):
        refuse(streamlm(place, "init", name), 1, "exists and is not an empty folder; name another one")
    assert contents(place) == before


def at_terminal(place, *args, typed):
    """Return the status of a process at whose terminal something is typed when it asks, and what it shows."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execve(args[0], args, ENVIRONMENT)
    out, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                out += os.read(fd, 65536)
            except OSError:
                break
        if b"[y/N] " in out and typed:
            os.write(fd, typed)
            typed = b""
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out.decode()


ASK = """
import sys
from pathlib import Path
import typer
from streamlm.commands.output_types import TEXT
from streamlm.commands.outputs import Outputs
try:
    Outputs().check(Path("story.txt"), TEXT)
except typer.BadParameter as error:
    sys.exit(2)
"""


@pytest.mark.parametrize(("typed", "status"), [(b"n\n", 2), (b"\n", 2), (b"\x04", 2), (b"y\n", 0)])
def test_terminal_is_asked_and_only_yes_replaces(place, typed, status):
    (place / "story.txt").write_text("mine")
    ended, shown = at_terminal(place, sys.executable, "-c", ASK, typed=typed)
    assert "story.txt exists; replace it? [y/N]" in shown
    assert ended == status
    assert (place / "story.txt").read_text() == "mine"


def say_to(monkeypatch, place, line, screen):
    """Run a command of the chat; return what is noted."""
    notes = []
    monkeypatch.setattr(screen, "note", notes.append)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    Session(SimpleNamespace(messages=messages), screen, place / "m").command(line)
    return notes[0]


def test_save_replaces_a_file_only_by_force_or_when_told_yes(place, monkeypatch):
    (place / "a.json").write_text("mine")
    plain, terminal = PlainScreen(), TerminalScreen()
    said = say_to(monkeypatch, place, "/save a.json", plain)
    assert said == "not saved: a.json exists; name another file, or replace it with /save --force FILE"
    for answer in ("n", "", "no"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert say_to(monkeypatch, place, "/save a.json", terminal).startswith("not saved: a.json exists")
    assert (place / "a.json").read_text() == "mine"
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert say_to(monkeypatch, place, "/save a.json", terminal) == "saved a.json"
    (place / "a.json").write_text("mine")
    assert say_to(monkeypatch, place, "/save --force a.json", plain) == "saved a.json"
    assert json.loads((place / "a.json").read_text())[1]["content"] == "Ho"


def test_save_never_writes_into_the_model_nor_into_a_fifo_that_nobody_reads(place, monkeypatch):
    os.mkfifo(place / "fifo")
    for name, message in (
        ("m/config.json", "is in the folder of the model"),
        ("fifo", "nothing reads from it"),
        ("m", "m is a folder"),
        ("t.txt/x", "a file stands where a folder is needed"),
        ("~nobody-at-all/x", "is in the home folder of nobody"),
        ("a\0b", "embedded null"),
    ):
        said = say_to(monkeypatch, place, f"/save --force {name}", PlainScreen())
        assert said.startswith("not saved: ")
        assert message in said


def test_interrupted_question_saves_nothing_and_the_conversation_goes_on(place, monkeypatch):
    (place / "a.txt").write_text("mine")

    def interrupted(question):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert say_to(monkeypatch, place, "/save a.txt", TerminalScreen()).startswith("not saved")
    assert (place / "a.txt").read_text() == "mine"
