"""``edgekit verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgekit.cli.console import json_option, progress_bar, quiet_libraries, show, target_option, threads_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@target_option
@threads_option
@click.option(
    "--original", metavar="MODEL", help="Compute the original's answers afresh (needs PyTorch and the model)."
)
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Perplexity over your own text too."
)
@json_option
def verify(
    bundle: Path, targets: tuple[str, ...], threads: int, original: str | None, text: Path | None, as_json: bool
) -> None:
    """Prove that BUNDLE computes what it should.

    Its golden vectors are replayed: parity with the compressed PyTorch model, accuracy against the original. Exit code 1 when a limit of the recipe is missed; then the first layer that differs is named.
    """
    quiet_libraries()
    from edgekit.parity import verify as run

    with progress_bar() as progress:
        report = run(bundle, targets=targets, threads=threads, original=original, text=text, progress=progress)
    show(report.lines(), report.to_json(), as_json)
    if not report.passed:
        sys.exit(1)
