"""``edgekit``: the verbs, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from edgekit import __version__
from edgekit.cli.bench import bench
from edgekit.cli.doctor import doctor
from edgekit.cli.export import export
from edgekit.cli.generate import generate
from edgekit.cli.inspect import inspect
from edgekit.cli.verify import verify
from edgekit.errors import EdgekitError
from edgekit.schema import suggest

VERBS = (export, verify, bench, generate, inspect, doctor)
INTERRUPTED = 130


class Verbs(click.Group):
    """A group that knows what was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(
                f"no verb {args[0]!r}{suggest(args[0], self.commands)}; verbs are {', '.join(self.commands)}"
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", "-V", prog_name="edgekit")
def group() -> None:
    """Put a compressed PyTorch model on a device, with proof that it still works.

    \b
    edgekit export MODEL --recipe int4 -o DIR    make a bundle
    edgekit verify DIR                           prove that it computes what it should
    edgekit bench DIR [DIR2]                     measure it
    edgekit generate DIR PROMPT                  run it

    Results go to stdout, progress to stderr. Exit codes: 0 done, 1 a check failed, 2 the call or the input is wrong.
    """


for _verb in VERBS:
    group.add_command(_verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Set before anything can import onnxruntime, whose builds report home by default since 1.29.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        group.main(args=given, prog_name="edgekit", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _fail(given, error.format_message(), error.exit_code, "UsageError", usage=error)
    except (click.Abort, KeyboardInterrupt):
        _fail(given, "interrupted; nothing half-written was kept", INTERRUPTED, "Interrupted")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except EdgekitError as error:
        _fail(given, str(error), error.exit_code, type(error).__name__)


def _fail(given: Sequence[str], message: str, code: int, kind: str, usage: Any = None) -> None:
    line = " ".join(message.split())
    if "--json" in given:
        click.echo(json.dumps({"error": {"kind": kind, "message": line, "exit_code": code}}))
    if usage is not None and getattr(usage, "ctx", None) is not None:
        click.echo(usage.ctx.get_usage(), err=True)
    click.echo(f"edgekit: {line}", err=True)
    sys.exit(code)
