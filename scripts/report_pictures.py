"""Pictures of a run's report in a browser, for the documents: desktop and phone, light and dark.

    python scripts/report_pictures.py runs/tiny-arithmetic docs

writes docs/report_desktop_light.png, …_dark.png, report_phone_light.png and …_dark.png. It needs chromium, chromedriver
and selenium; `--whole` takes all of the page and not its beginning alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from browser import browser_problem, opened

WIDTHS = {"desktop": (1440, 1640), "phone": (390, 1200)}
"""Name -> width and height of the picture."""


def take(report: Path, folder: Path, whole: bool = False, colours: int | None = None) -> list[Path]:
    """Takes all pictures of a report; returns their files.

    Args:
        colours: of a picture's palette, which makes it a third as large; None: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with opened(report) as page:
        for name, (width, height) in WIDTHS.items():
            for scheme in ("light", "dark"):
                page.show(width, scheme, height)
                files.append(folder / f"report_{name}_{scheme}.png")
                page.picture(files[-1], width, None if whole else height)
                if colours is not None:
                    _reduce(files[-1], colours)
    return files


def _reduce(file: Path, colours: int) -> None:
    from PIL import Image

    with Image.open(file) as picture:
        reduced = picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    reduced.save(file, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder, or its report.html")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--whole", action="store_true", help="all of the page")
    arguments = parser.parse_args()
    if problem := browser_problem():
        print(problem, file=sys.stderr)
        return 1
    report = arguments.run / "report.html" if arguments.run.is_dir() else arguments.run
    if not report.is_file():
        print(f"no report in {arguments.run}: python -m ruyi_rl stage=report run_dir={arguments.run}", file=sys.stderr)
        return 1
    for file in take(report, arguments.folder, arguments.whole, colours=None if arguments.whole else 256):
        print(f"{file}  {file.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
