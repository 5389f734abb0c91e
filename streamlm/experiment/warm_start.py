"""Run measuring jobs in forks of one process that has torch and transformers loaded.

Loading both takes three seconds, a third of a short job, and Snakemake gives the script of every job a
Python of its own. `start` begins a process that loads them once. The script of a job calls `begin`, which has
that process fork, lets the fork run the script, and ends as the fork ended. Every job still has a process of
its own, and computes what it would compute without this.
"""

import fcntl
import json
import multiprocessing.util
import os
import runpy
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

SOCKET = "STREAMLM_WARM_START"  # environment variable: the abstract socket where to ask for a fork
PREFIX = "STREAMLM_WARM_PREFIX"  # environment variable: whose packages are loaded there
SINCE = "STREAMLM_WARM_SINCE"  # environment variable: when they were loaded, in seconds
LOADED = ("streamlm.measure.perplexity", "streamlm.measure.latency")
LARGEST = 2**20  # bytes of a request
STREAMS = [0, 1, 2]
BEGUN = b"begun"

_started: list[subprocess.Popen[bytes]] = []  # kept: each ends when its stdin is closed


def start() -> None:
    """Begin the process that forks, for the jobs of this one; it ends with this one, however that ends.

    Only on Linux: what other systems load may not survive a fork.
    """
    if sys.platform != "linux":
        return
    name = f"streamlm-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{name}")  # no file: nothing is to be removed
        listener.listen()
        command = [sys.executable, "-m", __name__, str(listener.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    _started.append(process)
    os.environ |= {SOCKET: name, PREFIX: sys.prefix, SINCE: str(time.time())}


def begin(*, log: str) -> None:
    """Let the script that calls this run in a fork, if it can, and send what it prints to `log`.

    It cannot where there is nothing to fork, where other packages are loaded there, or where the code has
    changed since: the script then goes on by itself.
    """
    name = os.environ.pop(SOCKET, None)
    if name is not None and os.environ[PREFIX] == sys.prefix and not _has_changed(float(os.environ[SINCE])):
        status = _ask(f"\0{name}")
        if status is not None:
            sys.exit(status)
    sys.stdout = sys.stderr = Path(log).open("w", buffering=1, encoding="utf-8")  # noqa: SIM115


def _has_changed(since: float) -> bool:
    return any(file.stat().st_mtime > since for file in Path(__file__).parents[1].rglob("*.py"))


def _ask(address: str) -> int | str | None:
    """Have a fork run the script; return its exit status, or None if it was not begun."""
    request = {"script": sys.argv[0], "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(address)
            if not _is_ours(connection):
                return None
            socket.send_fds(connection, [json.dumps(request).encode()], STREAMS)
            if connection.recv(LARGEST) != BEGUN:
                return None
        except OSError:  # it is gone, or the environment is larger than a message may be
            return None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the fork as well, which then answers
        try:
            answer = connection.recv(LARGEST)
            connection.recv(LARGEST)  # returns when the fork has ended
        except ConnectionResetError:
            answer = b""
    return int(answer) if answer else "the process of this job was killed; most often, memory ran out"


def _is_ours(connection: socket.socket) -> bool:
    """Return whether the process at the other end is of the same user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.getuid())


def main() -> None:
    """Load what jobs import and fork for each; in a fork, run the script of the job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the jobs
    listener = socket.socket(fileno=int(sys.argv[1]))
    try:
        for module in LOADED:
            import_module(module)
    except ImportError:  # jobs may have packages of their own
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
    connection = _serve(listener)
    if connection is None:
        return
    listener.close()
    try:
        script = _take_over(connection)
    except (OSError, ValueError):  # whoever asked is gone
        os._exit(1)
    status = _run(script)
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # frees semaphores, such as that of tqdm
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        status = status or 120  # as Python itself ends where it cannot write
    connection.send(b"%d" % status)
    os._exit(status)  # as forks of `multiprocessing` end: to take down what was loaded takes a second


def _serve(listener: socket.socket) -> socket.socket | None:
    """Return in a fork, with its connection, for every one that is made; return None when stdin is closed."""
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        if _is_ours(connection) and os.fork() == 0:
            return connection
        connection.close()


def _take_over(connection: socket.socket) -> str:
    """Become the process of the job that asks: its streams, folder, environment, signals. Return its script.

    Raises:
        OSError: if it is gone.
        ValueError: if it was gone before it asked.
    """
    message, streams, _, _ = socket.recv_fds(connection, LARGEST, len(STREAMS))
    request = json.loads(message)
    for stream, own in zip(streams, STREAMS, strict=True):
        os.dup2(stream, own)
        os.close(stream)
    os.environ.clear()
    os.environ |= request["environment"]
    os.chdir(request["folder"])
    script: str = request["script"]
    sys.argv, sys.path[0] = [script], str(Path(script).parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The default action of SIGIO is to end the process. It comes when the one that asked is gone.
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    connection.send(BEGUN)
    return script


def _run(script: str) -> int:
    """Run a script as if it had been started by itself; return its exit status."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
