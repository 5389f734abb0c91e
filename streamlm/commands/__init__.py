"""The commands of `streamlm`, one module for each group of its help."""
