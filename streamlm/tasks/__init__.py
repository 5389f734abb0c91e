"""Tasks that show what still works when a cache forgets, made from seeds, with their answers."""
