"""Write the pictures of docs/report.md: the report's page in a wide, a dark and a narrow window.

`python -m docs.screenshots` needs a browser (Debian's chromium) and the page, which `dvc repro report` writes. The pictures
differ with its numbers, so they are taken by hand after a run.
"""

import tempfile
from pathlib import Path

from tests.browser import Browser, browser

PAGE, IMAGES = Path("data/report/report.html"), Path("docs/images")
DRAWN = "document.documentElement.dataset.drawn !== undefined"
# Picture: the width of the window, whether it is dark, the section it begins at, its height.
PICTURES: dict[str, tuple[int, bool, str | None, int]] = {
    "report-1400.png": (1400, False, None, 1050),
    "report-dark.png": (1400, True, "trade-offs", 1380),
    "report-400.png": (400, False, None, 1500),
}


def take(tab: Browser, picture: Path, width: int, dark: bool, section: str | None, height: int) -> None:
    """Take one picture."""
    tab.open(PAGE.resolve().as_uri(), width=width, dark=dark)
    tab.wait(DRAWN)
    top = tab.evaluate(f"document.getElementById('{section}').getBoundingClientRect().top + scrollY") if section else 0
    tab.screenshot(picture, top=top, height=height)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as tab:
        for name, how in PICTURES.items():
            take(tab, IMAGES / name, *how)
            print(IMAGES / name, (IMAGES / name).stat().st_size)


if __name__ == "__main__":
    main()
