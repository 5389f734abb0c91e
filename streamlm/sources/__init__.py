"""Models and texts from archives, folders and hubs: fetched, converted, tokenised."""
