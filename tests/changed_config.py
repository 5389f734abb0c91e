"""The default config with changes, and the report on a faulty one."""

import re
from copy import deepcopy

import pytest
import yaml
from project import ROOT

from streamlm.experiment.check import check_config

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
ABSENT = object()
LINE = re.compile(r"  .+: .+; .+")  # key: value and rule; remedy


def changed(config, edits):
    """Return a copy of a config with other values at some keys, each a/b/c, or without them."""
    config = deepcopy(config)
    for path, value in edits.items():
        *parents, last = path.split("/")
        section = config
        for key in parents:
            section = section[key]
        section[last] = value
        if value is ABSENT:
            del section[last]
    return config


def report(config, files=()):
    """Return the lines of the report on a faulty config."""
    with pytest.raises(ValueError) as caught:
        check_config(config, files)
    head, *lines = str(caught.value).split("\n")
    assert head == "the config has faults:"
    assert all(LINE.fullmatch(line) for line in lines), lines
    return [line.strip() for line in lines]


def path_source(path, **more):
    return {"kind": "path", "format": "text", "path": path, **more}
