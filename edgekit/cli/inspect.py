"""``edgekit inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli import console


@click.command(epilog=console.examples("edgekit inspect build/model", "edgekit inspect build/model --json"))
@click.argument("bundle", type=console.path)
@console.json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds.

    Size, operators, and every layer's format and bits per weight, or why it is not what the recipe said.
    """
    from edgekit.inspection import inspect as run

    inspection = run(bundle)
    console.show(inspection.lines(), inspection.to_json(), as_json)
