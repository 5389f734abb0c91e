"""The commands of `streamlm`, one module for each."""

from streamlm.extras import need

need("rich", "tabulate", "typer")
