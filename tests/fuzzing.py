"""Run one hostile input in a child of this process that can do no harm, and say what came of it.

The child may compute for 5 seconds, take 1 GiB and write below one folder. It may start no program and
open no connection.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path

SECONDS, BYTES = 5, 2**30
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "pty.spawn",
    "pickle.find_class",
)
WRITING = {
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rename": 1,
    "os.rmdir": 0,
    "os.symlink": 1,
    "os.link": 1,
    "os.truncate": 0,
    "os.chmod": 0,
}


class Escaped(BaseException):
    """The input made the child do what it must not; `escapes` remembers it where something catches this."""


escapes = []


def escape(what):
    """End what the child must not do."""
    escapes.append(what)
    raise Escaped(what)


def _watch(folder):
    """Let nothing be written outside of a folder, and nothing be started, until the process ends."""

    def check(path):
        real = folder if isinstance(path, int) else Path(os.fsdecode(path)).resolve()
        if not real.is_relative_to(folder) and str(real) != os.devnull:
            escape(f"wrote to {path}")

    def hook(event, args):
        if event in FORBIDDEN:
            escape(f"{event} {args!r:.80}")
        if event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            check(args[0])
        if event in WRITING:
            check(args[WRITING[event]])

    sys.addaudithook(hook)


def _limit():
    """Bound time and memory: past them, the system ends the process, or an allocation fails."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    faulthandler.disable()  # pytest enables it, and a crash is an outcome here
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(6 * SECONDS)  # for one that waits; other work may slow it down


def _outcome(attempt, args):
    """Return "taken", or the refusal in one line, or what went wrong after a "!"."""
    try:
        attempt(*args)
    except (ValueError, OSError) as error:
        lines = str(error).splitlines()
        return lines[0] if len(lines) == 1 else f"! a refusal of {len(lines)} lines: {error}"
    except BaseException as error:
        return "! " + "".join(traceback.format_exception(error))[-3000:]
    return "taken"


def try_input(folder, attempt, *args):
    """Return what `_outcome` does, of an attempt in a child that may write below `folder` only."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.chdir(folder)
        _watch(Path(folder).resolve())
        _limit()
        tempfile.tempdir = str(folder)
        outcome = _outcome(attempt, args)
        outcome = f"! {escapes}" if escapes and not outcome.startswith("!") else outcome
        signal.alarm(0)
        os.write(write, json.dumps(outcome).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    if status:
        return f"! ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"! status {status}"
    return json.loads(said)
