"""Where a number comes from: the code, the versions and the machine that made it."""

import ast
import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from streamlm import FRONT_DOOR, __version__

ROOT = Path(__file__).resolve().parent.parent
CPU_INFO = Path("/proc/cpuinfo")
UNCOUNTED = ("streamlm.extras", "streamlm.limits")  # they refuse, and change no number
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def code_fingerprint(*scripts: Path | str) -> list[str]:
    """Return "file hash" for scripts and every project module they import, directly or not.

    Imports are followed in the source, also those inside functions. The hash is that of the syntax tree
    without docstrings, so a comment, a docstring or a reformatting changes nothing.

    Args:
        scripts: Python files; modules of the package `streamlm` beside this file are followed.
    """
    found: dict[Path, str] = {}
    pending = [Path(script).resolve() for script in scripts]
    while pending:
        file = pending.pop()
        if file not in found:
            found[file], modules = _read_code(file.read_text(encoding="utf-8"))
            pending.extend(file for name in modules for file in _files_of(name))
    return sorted(f"{os.path.relpath(file, ROOT)} {digest}" for file, digest in found.items())


def _files_of(name: str) -> list[Path]:
    """Return the files that an import of `name` executes: its module, and the wings above it.

    Of `streamlm/__init__.py`, which loads nothing by itself, a name of the front door leads to its module.
    """
    package, _, attribute = name.rpartition(".")
    path = ROOT.joinpath(*FRONT_DOOR.get(attribute if package == "streamlm" else "", name).split("."))
    wings = [path, *path.parents][: len(path.relative_to(ROOT).parts) - 1]
    files = [path.with_suffix(".py"), *(wing / "__init__.py" for wing in wings)]
    return [file for file in files if file.is_file()]


@cache  # most scripts import the same modules
def _read_code(text: str) -> tuple[str, list[str]]:
    """Return the hash of a source, and what it may import of ours."""
    tree = ast.parse(text)
    ours = (name for name in _imported_names(tree) if name.startswith("streamlm."))
    names = [name for name in ours if not name.startswith(UNCOUNTED)]
    return hashlib.sha256(_without_docstrings(tree).encode()).hexdigest()[:16], names


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def _without_docstrings(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def processor_name() -> str:
    """Return the name of this machine's processor, as its kernel gives it."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


@cache
def processor_maker() -> str:
    """Return the maker of an x86 processor as it names itself, such as GenuineIntel; "" if unknown."""
    on_windows = platform.processor().partition(", ")[2]  # "Intel64 Family 6 Model 85, GenuineIntel"
    return _cpu_info("vendor_id") or on_windows


def _cpu_info(key: str) -> str:
    """Return a value of the first processor, "" where there is none."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def describe_environment(module: Path | str) -> dict[str, object]:
    """Return the versions, the machine and the code that a measurement was made with.

    Args:
        module: the file that measures; its code is that of all it imports.
    """
    return {
        "code": code_fingerprint(module),
        "python": platform.python_version(),
        "packages": {"streamlm": __version__, **{name: metadata.version(name) for name in PACKAGES}},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
    }
