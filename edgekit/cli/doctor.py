"""``edgekit doctor``."""

from __future__ import annotations

import sys

import click

from edgekit.cli.console import examples, json_option, show


@click.command(
    epilog=examples(
        "edgekit doctor",
        "edgekit doctor --json",
    )
)
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine.

    Versions, instruction sets, memory, disk, telemetry; exit code 1 when something must change.
    """
    from edgekit.doctor import examine

    found = examine()
    show(found.lines(), found.to_json(), as_json)
    if not found.passed:
        sys.exit(1)
