"""`version`: what is installed, and what it computes on."""

import os
import platform
from importlib import metadata

from streamlm import __version__
from streamlm.commands.terminal import say


def version() -> None:
    """Print the versions of streamlm and of what it computes with, and the device."""
    from streamlm.measure.device import choose_device, device_name
    from streamlm.provenance import processor_name

    device = device_name(choose_device("auto"))
    for name, value in (
        ("streamlm", __version__),
        ("Python", platform.python_version()),
        ("torch", metadata.version("torch")),
        ("transformers", metadata.version("transformers")),
        ("device", device),
        ("processor", f"{processor_name()}, {os.cpu_count()} cores"),
    ):
        say(f"{name:<13}{value}")
