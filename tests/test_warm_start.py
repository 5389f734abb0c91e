"""A job that runs in a fork of a loaded process does what it does by itself, and ends when it would."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from project import ROOT, environment
from small_run import RESULTS, contents, make_project, run

from streamlm.experiment import warm_start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks what has been loaded")

# Stands for snakemake: prints the variables that lead to the process that forks, and waits.
STARTER = """
import json, os, sys
from streamlm.experiment import warm_start
warm_start.start()
names = warm_start.SOCKET, warm_start.PREFIX, warm_start.SINCE
print(json.dumps([{name: os.environ[name] for name in names}, warm_start._started[0].pid]), flush=True)
sys.stdin.read()
"""
BEGIN = "from streamlm.experiment import warm_start; warm_start.begin(log='said.log')\n"
# What follows is read from the streams of the process.
UNDO = "import sys; sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__\n"
DESCRIBE = """
import json, os, sys
found = [os.getcwd(), os.environ["OF_THE_JOB"], sys.argv, "torch" in sys.modules, os.getpid(), __name__]
print(json.dumps(found))
print("said on stderr", file=sys.stderr)
"""


class Starter:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.variables, self.pid = json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def starter():
    started = Starter()
    yield started
    started.process.communicate()


def ask(place, program, variables, **options):
    """Start a script that joins."""
    script = place / "script.py"
    script.write_text(BEGIN + UNDO + program)
    path = {"PYTHONPATH": str(ROOT), "OF_THE_JOB": "its own"}
    return subprocess.Popen(
        [sys.executable, script], cwd=place, env=environment() | path | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def has_ended(pid, within=60):
    """Return whether a process that is not a child of this one ends in time."""
    for _ in range(int(20 * within)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # nobody has asked how it ended
            return True
        time.sleep(0.05)
    return False


def test_fork_runs_the_script_as_if_it_had_been_started_by_itself(starter, tmp_path):
    job = ask(tmp_path, DESCRIBE, starter.variables)
    said, errors = job.communicate()
    folder, variable, argv, is_loaded, pid, name = json.loads(said)
    assert job.returncode == 0
    assert (folder, variable, argv) == (str(tmp_path), "its own", [str(tmp_path / "script.py")])
    assert (is_loaded, name, errors) == (True, "__main__", "said on stderr\n")
    assert pid not in (job.pid, starter.pid)
    assert json.loads(ask(tmp_path, DESCRIBE, starter.variables).communicate()[0])[4] != pid


@pytest.mark.parametrize(
    ("program", "status", "errors"),
    [
        ("import sys; sys.exit(103)", 103, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(OSError('an object'))", 1, "an object"),
        ("sys.stdout.close()", 120, ""),
        ("import sys; sys.exit('a reason')", 1, "a reason"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", 1, "the process of this job was killed; most often, memory"),
    ],
)
def test_script_that_fails_fails_the_job(starter, tmp_path, program, status, errors):
    job = ask(tmp_path, program, starter.variables)
    assert errors in job.communicate()[1]
    assert job.returncode == status


def test_ctrl_c_is_the_fork_s_to_report(starter, tmp_path):
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    job = ask(tmp_path, program, starter.variables, process_group=0)
    pid = int(job.stdout.readline())
    os.kill(pid, signal.SIGINT)
    os.kill(job.pid, signal.SIGINT)
    assert job.communicate()[1].count("KeyboardInterrupt") == 1
    assert job.returncode == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_fork_can_use_the_gpu(starter, tmp_path):
    job = ask(tmp_path, "import torch; print(torch.ones(1, device='cuda').item())", starter.variables)
    assert job.communicate() == ("1.0\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_fork_ends_with_the_job_that_asked(starter, tmp_path, number):
    job = ask(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(600)", starter.variables)
    pid = int(job.stdout.readline())
    assert not has_ended(pid, within=0.5)
    job.send_signal(number)
    assert has_ended(pid)
    job.communicate()


@pytest.mark.parametrize(
    "change",
    [
        {warm_start.SOCKET: "of-nobody"},
        {warm_start.PREFIX: "/another/environment"},
        {warm_start.SINCE: "1"},  # code has changed since
        {f"LARGE_{i}": "x" * 100_000 for i in range(3)},  # more than a message takes
    ],
)
def test_job_that_cannot_be_a_fork_runs_by_itself(starter, tmp_path, change):
    job = ask(tmp_path, DESCRIBE, starter.variables | change)
    assert json.loads(job.communicate()[0])[3:5] == [False, job.pid]
    assert job.returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_somebody_else_gets_no_fork(starter):
    ask_as_nobody = (
        "import os, socket; os.setuid(65534)\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:\n"
        f"    connection.connect('\\0{starter.variables[warm_start.SOCKET]}')\n"
        "    print(connection.recv(1))"
    )
    done = subprocess.run([sys.executable, "-c", ask_as_nobody], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b''\n", "")


def test_process_that_forks_ends_with_the_one_that_started_it_however_that_ends():
    started = Starter()
    started.process.kill()
    started.process.communicate()
    assert has_ended(started.pid)


def test_jobs_of_a_run_are_forks_and_give_the_records_of_jobs_that_are_not(tmp_path):
    place = make_project(tmp_path / "project")
    script = place / "workflow" / "scripts" / "measure_perplexity.py"
    begin, is_fork = "\nfrom streamlm.input_files", "\nimport sys; IS_FORK = 'torch' in sys.modules"
    text = script.read_text().replace(begin, is_fork + begin)
    script.write_text(text + "\nprint('a fork:', IS_FORK)\n")
    made = []
    labels = ["dense", "recompute"]
    for together in (labels, labels[:1], labels[1:]):  # both in one run, and each in a run of its own
        done, said = run(place, *(f"{RESULTS}/runs/readme/{label}.json" for label in together))
        assert done, said
        for label in together:
            log = place / RESULTS / "logs" / "measure_perplexity" / "readme" / f"{label}.log"
            assert f"a fork: {together == labels}" in log.read_text()
        if together != labels[:1]:
            made.append(contents(place))
            shutil.rmtree(place / RESULTS)
    assert len(made[0]) == 5  # two records, their losses, and the token ids
    assert made[0] == made[1]
