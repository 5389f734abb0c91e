"""What commands write, and where: checked before the work, so that nothing of the user's is lost by it."""

import errno
import fcntl
import os
import re
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, overload

import typer

from streamlm.characters import without_steering
from streamlm.commands.output_types import OutputType
from streamlm.commands.terminal import ask_on_terminal, shown


@dataclass(frozen=True)
class Output:
    """A file that will be written.

    Args:
        asked: its name, as it was given.
        real: where its links lead; it is replaced there, and the links stay.
        output_type: what it will hold.
        descriptor: open for writing, where this is no regular file or is one that was open already.
    """

    asked: Path
    real: Path
    output_type: OutputType
    descriptor: int | None = None

    @property
    def path(self) -> Path:
        """What a rename replaces: a link stays, and is followed."""
        return self.real if self.asked.is_symlink() else self.asked

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """Yield a path to write the whole content at, with what replaces a file by a rename."""
        if self.descriptor is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / self.asked.name
            yield made
            content = made.read_bytes()
        if os.isatty(self.descriptor):
            content = without_steering(content.decode()).encode()
        sys.stdout.flush()  # it may be the same file
        with os.fdopen(self.descriptor, "wb") as file:
            file.write(content)

    def open(self) -> TextIO:
        """Return it open for a text that is written as it comes."""
        sys.stdout.flush()
        if self.descriptor is None:
            return self.path.open("w", encoding="utf-8")
        return shown(os.fdopen(self.descriptor, "w", encoding="utf-8"))


class Outputs:
    """The outputs of a command, each checked as it is named, before anything is measured.

    Args:
        inputs: files that the command reads; no output may be one of them, whatever it is called.
        model_dir: nor may it be a file of this folder.
        force: whether any other file may be replaced.
        ask: asks whether a file may be replaced.
        remedy: what replaces it without being asked.
    """

    def __init__(
        self,
        *,
        inputs: Iterable[Path | None] = (),
        model_dir: Path | None = None,
        force: bool = False,
        ask: Callable[[str], bool] = ask_on_terminal,
        remedy: str = "--force",
    ) -> None:
        self.inputs, self.model_dir = [path for path in inputs if path is not None], model_dir
        self.force, self.ask, self.remedy = force, ask, remedy
        self.checked: list[Output] = []

    @overload
    def check(self, target: None, output_type: OutputType) -> None: ...

    @overload
    def check(self, target: Path, output_type: OutputType) -> Output: ...

    def check(self, target: Path | None, output_type: OutputType) -> Output | None:
        """Return an output that can be written, or None for None.

        Raises:
            typer.BadParameter: if it is a folder, an input, a file of the model, another output, or a file of
                another kind that may not be replaced.
            OSError: if it cannot be written.
        """
        if target is None:
            return None
        target = expanded(target)
        found = _stat(target)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise typer.BadParameter(f"{target} is a folder; name a file to write")
        real = Path(os.path.realpath(target))
        self._check_others(target, real, found, output_type)
        descriptor = None
        if _descriptor_of(target) is not None or not (found is None or stat.S_ISREG(found.st_mode)):
            descriptor = _open_special(target, found, output_type)
        else:
            self._check_replacing(target, found, output_type)
            _check_writable(real, found, output_type)
        output = Output(target, real, output_type, descriptor)
        self.checked.append(output)
        return output

    def _check_others(
        self, target: Path, real: Path, found: os.stat_result | None, output_type: OutputType
    ) -> None:
        """Refuse what the command reads, or writes by another option."""
        if found is not None and stat.S_ISCHR(found.st_mode):
            return  # a terminal or /dev/null may be read and written, and more than once
        for path in self.inputs:
            if _same(target, found, path):
                raise typer.BadParameter(f"{target} is read by this command ({path}); name another file")
        for other in self.checked:
            if _spelling(real) == _spelling(other.real) or _same(target, found, other.asked):
                raise typer.BadParameter(f"two options name the file {target} to write; give each its own")
        if self._is_of_model(target, real, found, output_type):
            raise typer.BadParameter(
                f"{target} is in the folder of the model, {self.model_dir}; name a file elsewhere"
            )

    def _is_of_model(
        self, target: Path, real: Path, found: os.stat_result | None, output_type: OutputType
    ) -> bool:
        """Return whether a target is directly in the model's folder, a file of it, or a link to one."""
        if self.model_dir is None or not self.model_dir.is_dir():
            return False
        folder = Path(os.path.realpath(self.model_dir))
        if _same(real.parent, _stat(real.parent), folder) or any(
            _same(target, found, path) for path in folder.iterdir()
        ):
            return True
        return found is not None and real.is_relative_to(folder) and not output_type.is_ours(target)

    def _check_replacing(self, target: Path, found: os.stat_result | None, output_type: OutputType) -> None:
        """Ask before a file is lost that the command could not have written."""
        if found is None or found.st_size == 0 or self.force or output_type.is_ours(target):
            return
        why = f"{target} exists" + (f" and is no {output_type.name}" if output_type.is_marked else "")
        if not self.ask(f"{why}; replace it?"):
            raise typer.BadParameter(f"{why}; name another file, or replace it with {self.remedy}")


def expanded(path: Path) -> Path:
    """Return a path with its ~ expanded."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path} is in the home folder of nobody; for a file of this name write ./{path}"
        ) from error


def _stat(target: Path) -> os.stat_result | None:
    """Return what is there, links followed; None if nothing is, or what is in the way is named later."""
    number = _descriptor_of(target)
    try:
        return target.stat() if number is None else os.fstat(number)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        raise OSError(f"cannot write {target}: {error.strerror}; name another file") from error


def _same(target: Path, found: os.stat_result | None, other: Path) -> bool:
    """Return whether two names are of one file, whatever links, folders and case they go through."""
    if os.path.realpath(target) == os.path.realpath(other):
        return True
    with suppress(OSError):
        return found is not None and os.path.samestat(found, other.stat())
    return False


def _spelling(path: Path) -> str:
    """Return what two names share that some file systems take for one."""
    return unicodedata.normalize("NFC", str(path)).casefold()


# Where /dev/stdout and /dev/fd/3 lead, folders followed; macOS has no /proc.
_OPEN_FILE = re.compile(rf"/(?:dev|proc/{os.getpid()}(?:/task/\d+)?)/fd/(\d+)")


def _descriptor_of(target: Path) -> int | None:
    """Return the number of the open file that a name such as /dev/stdout or /dev/fd/3 stands for."""
    path = target
    for _ in range(40):  # links, as many as Linux follows
        path = Path(os.path.realpath(path.parent)) / path.name
        if match := _OPEN_FILE.fullmatch(str(path)):
            return int(match[1])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _open_special(target: Path, found: os.stat_result | None, output_type: OutputType) -> int:
    """Return what is no regular file, open for writing: a FIFO would lose its reader meanwhile."""
    if output_type.is_read_again:
        raise typer.BadParameter(f"{target} must be a regular file, since a {output_type.name} is read again")
    if found is not None and stat.S_ISBLK(found.st_mode):
        raise typer.BadParameter(f"{target} is a disk; name a file to write")
    number = _descriptor_of(target)
    try:
        if number is None:
            descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.set_blocking(descriptor, True)
        else:
            descriptor = os.dup(number)
    except OSError as error:
        no_reader = "nothing reads from it; start its reader first"
        why = no_reader if error.errno == errno.ENXIO else error.strerror
        raise OSError(f"cannot write {target}: {why}") from error
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise typer.BadParameter(f"{target} is open for reading only; name a file to write")
    if os.isatty(descriptor) and not output_type.is_text:
        raise typer.BadParameter(f"{target} is a terminal, and a {output_type.name} is no text; name a file")
    return descriptor


class _Tried(Exception):
    """Ends a write that was only tried."""


def _check_writable(real: Path, found: os.stat_result | None, output_type: OutputType) -> None:
    """Raise OSError if a file could not be written, by beginning to."""
    from streamlm.records.files import atomic_path

    if found is not None and output_type.is_streamed:
        os.close(os.open(real, os.O_WRONLY))
    with suppress(_Tried), atomic_path(real):
        raise _Tried
