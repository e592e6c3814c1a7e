"""Print a document on A4: `PYTHONPATH=.:tests python -m uikit.paper docs/operator.md operator.pdf`.

Headless Chromium makes the PDF; without it `operator.html` is left, to print from any browser.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
@page { size: A4; margin: 14mm 16mm }
body { font: 10.5pt/1.38 'DejaVu Sans', Arial, sans-serif; color: #000; margin: 0 }
h1 { font-size: 19pt; margin: 0 0 2mm }
p { margin: 0 0 2.2mm } img { display: block; margin: 0 auto; border: .3mm solid #999 }
table { border-collapse: collapse; width: 100%; margin: 3mm 0 }
th, td { border: .3mm solid #777; padding: 1.3mm 2mm; text-align: left; vertical-align: top }
th { background: #eee }
"""


def html(page: Path) -> str:
    """The document as one page of HTML whose pictures are found from anywhere."""
    body = MarkdownIt("commonmark").enable("table").render(page.read_text())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{page.stem}</title>'
        f'<base href="{page.resolve().parent.as_uri()}/"><style>{STYLE}</style>{body}</html>'
    )


def pdf(page: Path, out: Path) -> int:
    """Write `out`; how many sheets it has. CalledProcessError when Chromium fails."""
    with tempfile.TemporaryDirectory(prefix="paper") as home:
        source = Path(home) / "page.html"
        source.write_text(html(page))
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu"),
                *(f"--user-data-dir={home}/profile", "--no-pdf-header-footer"),
                *("--allow-file-access-from-files", f"--print-to-pdf={out}", source.as_uri()),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    return sheets(out)


def sheets(out: Path) -> int:
    """Pages of a PDF as Chromium writes it."""
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", out.read_bytes()))


def main(page: Path, out: Path) -> None:
    """PDF, or HTML where there is no Chromium."""
    if shutil.which("chromium") is None:
        out = out.with_suffix(".html")
        out.write_text(html(page))
        print(f"no chromium here: open {out} in a browser and print it")
    else:
        print(f"{out}: {pdf(page, out)} page(s)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
