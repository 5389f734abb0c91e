"""What a language model loses, and what it saves, when its KV cache keeps sinks and a window.

Import from the modules: ``from streamlm.cache import SinkCache``.
"""

__version__ = "0.1.0"
