"""Run measuring jobs in forks of one process that has torch and transformers loaded.

Loading both takes three seconds, a third of a short job, and Snakemake gives the script of every job a
Python of its own. `start` begins a process that loads them once. The script of a job calls `join`, which has
that process fork, lets the fork run the script, and ends as the fork ended. Every job still has a process of
its own, and computes what it would compute without this.
"""

import fcntl
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

SOCKET = "STREAMLM_WARM_START"  # environment variable: where to ask for a fork
PREFIX = "STREAMLM_WARM_PREFIX"  # environment variable: whose packages are loaded there
LOADED = ("streamlm.measure.perplexity", "streamlm.measure.latency")
LARGEST = 2**20  # bytes of a request
STREAMS = [0, 1, 2]

_started: list[subprocess.Popen[bytes]] = []  # kept: each ends when its stdin is closed


def start() -> None:
    """Begin the process that forks, for the jobs of this one; it ends with this one, however that ends.

    Only on Linux: what other systems load may not survive a fork.
    """
    if sys.platform != "linux":
        return
    path = f"{tempfile.mkdtemp(prefix='streamlm-')}/socket"  # in a folder that nobody else can enter
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        command = [sys.executable, "-m", __name__, str(listener.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    _started.append(process)
    os.environ |= {SOCKET: path, PREFIX: sys.prefix}


def join() -> None:
    """Have a fork run the script that calls this, and exit as it did.

    Where there is nothing to fork, or other packages are loaded there, return: the script goes on by itself.
    """
    path = os.environ.pop(SOCKET, None)
    if path is None or os.environ[PREFIX] != sys.prefix:
        return
    request = {"script": sys.argv[0], "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [json.dumps(request).encode()], STREAMS)
        except OSError:  # it is gone, or the environment is larger than a message may be
            return
        answer = connection.recv(1)
        if answer:
            connection.recv(1)  # returns when the fork has ended
    sys.exit(int(answer) if answer else "the process of this job was killed; most often, memory ran out")


def main() -> None:
    """Load what jobs import and fork for each; in a fork, run the script of the job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the jobs
    listener = socket.socket(fileno=int(sys.argv[1]))
    for module in LOADED:
        import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
    connection = _serve(listener)
    if connection is None:
        shutil.rmtree(Path(listener.getsockname()).parent)
        return
    listener.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = _run(connection)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(b"%d" % status)
    os._exit(status)  # as forks of `multiprocessing` end: to take down what was loaded takes a second


def _serve(listener: socket.socket) -> socket.socket | None:
    """Return in a fork, with its connection, for every one that is made; return None when stdin is closed."""
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            return connection
        connection.close()


def _run(connection: socket.socket) -> int:
    """Run the script that is asked for as if it had been started by itself; return its exit status."""
    message, streams, _, _ = socket.recv_fds(connection, LARGEST, len(STREAMS))
    if not message:  # whoever asked is gone
        return 1
    request = json.loads(message)
    for stream, own in zip(streams, STREAMS, strict=True):
        os.dup2(stream, own)
        os.close(stream)
    # The default action of SIGIO is to end the process. It comes when the one that asked is gone.
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    os.environ.clear()
    os.environ |= request["environment"]
    os.chdir(request["folder"])
    script = request["script"]
    sys.argv, sys.path[0] = [script], str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, str):
            return int(end.code or 0)
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
