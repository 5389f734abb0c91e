"""Fetch models and texts from archives, folders and hubs; convert and tokenise them."""
