"""The pages of the documentation, and the blocks of code in them."""

import re
import textwrap

from project import ROOT

PAGES = sorted([*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])


def blocks(page, language):
    """Return the content of the fences of one language, in order; a fence in a list is indented."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]
