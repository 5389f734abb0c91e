"""Figures and tables, drawn from records; torch is never loaded here."""
