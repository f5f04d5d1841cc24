"""The README's picture: ``python -m tools.draw_verify BUNDLE`` verifies it and draws what was printed.

docs/images/verify.svg is that of SmolLM2-135M-Instruct: ``make demo`` leaves the bundle in build/demo/smollm2-int4.
"""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "verify.svg"
WIDTH = 96
MARKS = {"✓": "bold green", "✗": "bold red", r"verdict: PASS": "bold green", r"verdict: FAIL": "bold red"}


def main(bundle: str, picture: Path = PICTURE) -> None:
    """Runs ``edgekit verify`` and writes ``picture``; whatever the verdict is, it is drawn."""
    command = [sys.executable, "-m", "edgekit", "verify", bundle]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode not in (0, 1):
        raise SystemExit(run.returncode)
    text = Text(f"$ edgekit verify {bundle}\n{run.stdout.rstrip()}")
    for mark, style in MARKS.items():
        text.highlight_regex(mark, style)
    console = Console(record=True, width=WIDTH, file=StringIO())
    console.print(text)
    drawn = console.export_svg(title="edgekit verify", unique_id="verify")
    drawn = re.sub(
        r"@font-face \{.*?\}\s*", "", drawn, flags=re.S
    )  # no font from elsewhere: the viewer's own monospace
    picture.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
