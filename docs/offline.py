"""A hook of MkDocs: the built site must not fetch anything from elsewhere."""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

# What a browser loads without being asked; a link that a reader follows is not among it.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
    r"""|(?:url\(|@import\s+)["']?(?:https?:)?//[^)\s]+"""
)


def on_post_build(config):
    """Raise PluginError if a page or a style sheet loads something from another host."""
    for file in sorted(Path(config["site_dir"]).rglob("*")):
        if file.suffix in {".html", ".css", ".svg"}:
            for found in LOADED.finditer(file.read_text(encoding="utf-8")):
                raise PluginError(
                    f"{file} loads {found[0][:200]} from elsewhere; keep a copy in docs/ or leave it out"
                )
