"""``edgekit doctor``."""

from __future__ import annotations

import sys

import click

from edgekit.cli import console


@click.command(epilog=console.examples("edgekit doctor", "edgekit doctor --json"))
@console.json_option
def doctor(as_json: bool) -> None:
    """Check this machine.

    Versions, instruction sets, memory, disk, telemetry; exit code 1 when something must change.
    """
    from edgekit.doctor import examine

    examination = examine()
    console.show(examination.lines(), examination.to_json(), as_json)
    if not examination.passed:
        sys.exit(1)
