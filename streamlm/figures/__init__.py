"""Figures and tables, drawn from records; torch is never loaded here."""

from streamlm.extras import need

need("matplotlib", "pandas")
