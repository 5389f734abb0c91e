"""The commands of `streamlm`, one module for each."""
