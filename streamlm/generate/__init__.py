"""Text without end, and conversation, from a cache of constant size."""
