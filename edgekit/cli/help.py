"""``edgekit help``."""

from __future__ import annotations

import click

from edgekit.cli import console


@click.command("help", epilog=console.examples("edgekit help", "edgekit help export", "edgekit help devices setup"))
@click.argument("verb", nargs=-1)
@click.pass_context
def help_of(context: click.Context, verb: tuple[str, ...]) -> None:
    """Show what VERB does and how it is called, with examples."""
    at = context.find_root()
    for name in verb:
        if not isinstance(at.command, click.Group):
            raise click.UsageError(f"`{at.command_path}` has no parts; leave {name!r} out")
        command = at.command.resolve_command(at, [name])[1]
        assert command is not None
        at = click.Context(command, parent=at, info_name=name)
    click.echo(at.get_help())
