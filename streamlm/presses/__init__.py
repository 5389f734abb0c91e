"""The same measurements under NVIDIA kvpress."""
