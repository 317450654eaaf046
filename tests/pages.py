"""README.md and the pages of docs/: their text, their blocks of code, and the order in which a reader meets the commands."""

import re

from docs import write
from tests.conftest import ROOT

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in write.pages(ROOT)}
# Their bash blocks are run in this order, in one shell, by tests/e2e/test_compress.py.
IN_ORDER = (
    "README.md",
    "docs/quickstart.md",
    "docs/reproducibility.md",
    "docs/pruning.md",
    "docs/tasks.md",
    "docs/profiles.md",
    "docs/deployment.md",
    "docs/serving.md",
)


def blocks(language: str, *pages: str) -> list[str]:
    """The code blocks of a language on these pages, or on all pages."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for page in pages or PAGES for block in fenced.findall(PAGES[page])]


def saved() -> dict[str, str]:
    """File to save -> its text: the yaml blocks whose first line is the name of a profile."""
    named = [re.match(r"# (profiles/\S+)\n(.*)", block, re.DOTALL) for block in blocks("yaml")]
    return {match[1]: match[2] for match in named if match}


def inline(page: str) -> list[str]:
    """The code within the sentences and tables of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL))
