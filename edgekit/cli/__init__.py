"""The command line: one file a verb, each calling one library function."""

from edgekit.cli.verbs import main

__all__ = ["main"]
