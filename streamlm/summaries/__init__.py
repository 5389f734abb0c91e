"""Records brought together: paired by token, collected, put into words."""
