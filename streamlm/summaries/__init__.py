"""Records brought together: paired by token, collected, put into words."""

from streamlm.extras import need

need("tabulate")
