"""What a language model loses, and what it saves, when its KV cache keeps sinks and a window.

The front door, loaded when it is first used, so that drawing a figure never loads torch::

    from streamlm import SinkCache, StreamConfig, load_model, prepare, score_stream
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlm.cache.models import load_model
    from streamlm.cache.prepare import prepare
    from streamlm.cache.sink_cache import SinkCache
    from streamlm.config import StreamConfig
    from streamlm.measure.scoring import score_stream

__all__ = ["SinkCache", "StreamConfig", "__version__", "load_model", "prepare", "score_stream"]
__version__ = "0.1.0"

FRONT_DOOR = {
    "SinkCache": "streamlm.cache.sink_cache",
    "StreamConfig": "streamlm.config",
    "load_model": "streamlm.cache.models",
    "prepare": "streamlm.cache.prepare",
    "score_stream": "streamlm.measure.scoring",
}


def __getattr__(name: str) -> Any:
    """Return a name of the front door, importing its module."""
    if name not in FRONT_DOOR:
        raise AttributeError(f"module 'streamlm' has no attribute {name!r}")
    return getattr(import_module(FRONT_DOOR[name]), name)


def __dir__() -> list[str]:
    """Return the public names, those not loaded yet included."""
    return sorted([*globals(), *FRONT_DOOR])
