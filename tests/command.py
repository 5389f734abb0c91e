"""The command as a user types it: in this process, or in one of its own."""

import io
import os
import subprocess
import sys
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest
from project import ROOT

from streamlm.cli import main

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}


def command(*args):
    return [sys.executable, "-c", "from streamlm.cli import main; main()", *map(str, args)]


def streamlm(place, *args):
    """What the command does in this process: starting another takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(place), redirect_stdout(out), redirect_stderr(err),
        patch.object(sys, "argv", ["streamlm", *map(str, args)]), patch.dict(os.environ, COLUMNS="80"),
        patch.object(warnings, "formatwarning", warnings.formatwarning),  # which the command sets
        pytest.raises(SystemExit) as ended,
    ):  # fmt: skip
        main()
    return subprocess.CompletedProcess(args, ended.value.code or 0, out.getvalue(), err.getvalue())


def streamlm_alone(place, *args):
    """The same in a process of its own."""
    return subprocess.run(command(*args), cwd=place, env=ENVIRONMENT, capture_output=True, text=True)


def only_line(done, status=1):
    """Return the one line that an ended command wrote to its standard error."""
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    return line


def refuse(done, status, message):
    """A mistake is one line on stderr, the status says of what kind, and stdout stays empty."""
    assert message in only_line(done, status)
    assert done.stdout == ""
