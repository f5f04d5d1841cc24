"""``edgekit inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.console import examples, json_option, show


@click.command(
    epilog=examples(
        "edgekit inspect build/model",
        "edgekit inspect build/model --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds.

    Size, operators, and every layer's format and bits per weight, or why it is not what the recipe said.
    """
    from edgekit.inspection import inspect as run

    found = run(bundle)
    show(found.lines(), found.to_json(), as_json)
