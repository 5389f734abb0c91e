"""Hooks of MkDocs: a reference page for every module, and a site that fetches nothing from elsewhere."""

# MkDocs has an environment of its own; imported where it is used, so that a test can read LOADED without it.
import re
from pathlib import Path

# What a browser loads without being asked; a link that a reader follows is not among it.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
    r"""|(?:url\(|@import\s+)["']?(?:https?:)?//[^)\s]+"""
)

# Whose names are loaded when they are first used, so that they are listed here by their modules.
FRONT_DOOR = """\
`from streamlm import SinkCache, StreamConfig, load_model, prepare, score_stream`: each name is loaded when it
is first used, so `import streamlm` alone does not load torch.

| name | module |
|---|---|
| `SinkCache` | [cache.sink_cache](streamlm.cache.sink_cache.md) |
| `StreamConfig` | [config](streamlm.config.md) |
| `load_model` | [cache.models](streamlm.cache.models.md) |
| `prepare` | [cache.prepare](streamlm.cache.prepare.md) |
| `score_stream` | [measure.scoring](streamlm.measure.scoring.md) |
"""


def on_files(files, config):
    """Add the reference, and pages that `nav` does not name, to what is built and to the contents."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    others = sorted(page.src_uri for page in files.documentation_pages() if page.src_uri not in named)
    config.nav += others
    pages, wings = [{"The front door": _add_page(files, config, "streamlm", FRONT_DOOR)}], {}
    for file in sorted(Path("streamlm").rglob("[!_]*.py")):
        _, *wing, module = parts = file.with_suffix("").parts
        name = ".".join(parts)
        (wings.setdefault(wing[0], []) if wing else pages).append(
            {module: _add_page(files, config, name, f"::: {name}")}
        )
    config.nav.append({"Reference": pages + [{wing: inside} for wing, inside in wings.items()]})


def _add_page(files, config, name, content):
    """Add a page of the reference; return its address."""
    from mkdocs.structure.files import File

    page = f"reference/{name}.md"
    files.append(File.generated(config, page, content=f"# {name}\n\n{content}\n"))
    return page


def on_page_markdown(markdown, page, config, files):
    """Keep the words of a link to a file outside docs/, which is not on the site; the file must exist."""
    from mkdocs.exceptions import PluginError

    docs = Path(config.docs_dir).resolve()

    def without_link(match):
        words, link = match.groups()
        target = (docs / page.file.src_uri).parent.joinpath(link.partition("#")[0]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links to {link}, which is not there; correct the link")
        return words

    return re.sub(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)", without_link, markdown)


def on_post_build(config):
    """Raise PluginError if a page or a style sheet loads something from another host."""
    from mkdocs.exceptions import PluginError

    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in {".html", ".css", ".svg"}:
            for found in LOADED.finditer(file.read_text(encoding="utf-8")):
                raise PluginError(
                    f"{file} loads {found[0][:200]} from elsewhere; keep a copy in docs/ or leave it out"
                )
