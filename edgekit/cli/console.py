"""What every verb shares: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.spec.progress import Progress

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

path = click.Path(path_type=Path)
existing = click.Path(exists=True, path_type=Path)
text_file = click.Path(exists=True, dir_okay=False, path_type=Path)
THREADS = click.IntRange(1, 1024)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else there."
)
threads_option = click.option("--threads", "-t", type=THREADS, default=1, help="Threads of ONNX Runtime.")
target_option = click.option(
    "--target", "targets", multiple=True, default=("local",), metavar="TARGET",
    help="Where to run: local, ssh:[user@]host[:port] or adb:SERIAL; may be given several times.",
)  # fmt: skip
pickle_option = click.option("--allow-pickle", is_flag=True, help="Accept pickled weights, read with weights_only.")
labels_help = "an .npz with the model's inputs and 'labels', or a directory with a folder of pictures for each class."


def examples(*lines: str) -> str:
    """The end of a verb's help, each line as it is."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def show(lines: Iterable[str], document: dict[str, Any], as_json: bool) -> None:
    """The result: lines for people or one JSON document."""
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        for line in lines:
            click.echo(printable(line))


def printable(text: str) -> str:
    """Text from a bundle or a model, unable to steer the terminal: control characters are spelled, but tab and newline."""
    return _CONTROL.sub(lambda character: f"\\x{ord(character[0]):02x}", text)


def prepare_streams() -> None:
    """UTF-8 wherever the output goes; what has no UTF-8 (half a surrogate pair) is spelled.

    Where stdout or stderr is closed, what is printed there goes nowhere.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process runs
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def quiet_libraries() -> None:
    """transformers and torch say much on stderr that is no news to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on a terminal, one line a step elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description:<52.52}", markup=False), bars.BarColumn(), bars.TimeElapsedColumn(),
        bars.TextColumn("left"), bars.TimeRemainingColumn(),
    )  # fmt: skip
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        steps: dict[str, bars.TaskID] = {}

        def say(what: str, share: float) -> None:
            if what not in steps:  # a bar for each step: the time left is that of the step
                for other in steps.values():
                    bar.update(other, visible=False)
                steps[what] = bar.add_task(what, total=1.0)
            bar.update(steps[what], completed=share)

        yield say


class _Lines:
    """Names each step once, with the seconds since the start; steps of several devices take turns."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._last: deque[str] = deque(maxlen=8)

    def __call__(self, what: str, share: float) -> None:
        step = "write weights" if what.startswith("write ") else what
        if step not in self._last:
            self._last.append(step)
            click.echo(f"{time.perf_counter() - self._began:6.1f} s  {printable(step)}", err=True)
