"""Run pip up to the pinned archive, which is neither unpacked nor built; a program of its own.

    python guarded_pip.py SHA256 TARGET ARGUMENTS OF PIP

Before pip hands over a source archive, it would run its `setup.py`. The file is complete when pip opens it to
check its hash: then it is copied to TARGET and pip ends. Meanwhile pip can start no program.
"""

import hashlib
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

_SUFFIXES = (".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tlz")
# https://docs.python.org/3/library/audit_events.html
_STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}


class Guard:
    """An audit hook: it takes the archive with this hash, and refuses to start programs."""

    def __init__(self, sha256: str, target: Path) -> None:
        self.sha256, self.target = sha256, target
        self.hashing = False  # the hook is called for the files that it opens too

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Look at one event."""
        if event == "open" and not self.hashing:
            path, _, flags = args
            if isinstance(path, str) and path.endswith(_SUFFIXES) and flags & os.O_ACCMODE == os.O_RDONLY:
                self._take(Path(path))
        elif event in _STARTS and not _is_of_pip(args):
            raise PermissionError(f"{args[0]} is not started: fetching an archive runs no other program")

    def _take(self, path: Path) -> None:
        """Copy the file and end the process, if it is the archive."""
        if not path.is_file():
            return
        self.hashing = True
        with path.open("rb") as file:
            is_pinned = hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        if is_pinned:
            shutil.copyfile(path, self.target)
            sys.stdout.flush()
            os._exit(0)  # pip would catch an exception and report a fault
        self.hashing = False


def _is_of_pip(args: tuple[Any, ...]) -> bool:
    """Whether pip asks the user's own keyring for a password, or its Python for the version of macOS."""
    if len(args) < 2 or isinstance(args[0], int):
        return False
    program, options = os.fsdecode(args[0]), [str(option) for option in args[1][1:4]]
    asks_version = options[:2] == ["-sS", "-c"] and options[2].startswith("import platform;")
    return Path(program).name == "keyring" or (program == sys.executable and asks_version)


def main() -> None:
    """Run pip under the guard."""
    sha256, target, *arguments = sys.argv[1:]
    sys.argv = ["pip", *arguments]
    sys.addaudithook(Guard(sha256, Path(target)))
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
