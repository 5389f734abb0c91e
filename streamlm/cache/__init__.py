"""The cache of sinks + window, the exact attention over it, and how a model is prepared for it."""
