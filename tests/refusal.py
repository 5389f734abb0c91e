"""How a stranger's file is refused, and how an honest one is changed."""

import json
import time

import pytest


def change(file, **changes):
    """Change the keys of a JSON file; None leaves one out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refusal(act, *args, **options):
    """Return the one line with which something is refused, in little time."""
    begin = time.monotonic()
    with pytest.raises(ValueError) as caught:
        act(*args, **options)
    assert time.monotonic() - begin < 20
    line = str(caught.value)
    assert line.isprintable(), line
    return line
