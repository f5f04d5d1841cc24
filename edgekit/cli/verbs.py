"""``edgekit``: the verbs, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from edgekit import __version__
from edgekit.cli.bench import bench
from edgekit.cli.compress import compress
from edgekit.cli.console import INTERRUPTED, prepare_streams, printable
from edgekit.cli.devices import devices
from edgekit.cli.doctor import doctor
from edgekit.cli.evaluate import evaluate
from edgekit.cli.export import export
from edgekit.cli.generate import generate
from edgekit.cli.help import help_of
from edgekit.cli.inspect import inspect
from edgekit.cli.pack import pack, unpack
from edgekit.cli.recipes import recipes
from edgekit.cli.verify import verify
from edgekit.errors import EdgekitError, UsageError
from edgekit.strict import suggest
from edgekit.unfinished import ended_like_ctrl_c

VERBS = (export, verify, bench, generate, evaluate, inspect, compress, recipes, pack, unpack, devices, doctor, help_of)
BUG = 70
OF_THE_MACHINE = (errno.ENAMETOOLONG, errno.EIO)
"""Errors of any path that is touched anywhere: one that no file system takes, and a disk that cannot be read."""
READER_WENT = 141
"""128 + SIGPIPE, as other programs end when the reader of their output goes."""


class Verbs(click.Group):
    """A group that knows what was probably meant, its verbs in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(
                f"no verb {args[0]!r}{suggest(args[0], self.commands)}; verbs are {', '.join(self.commands)}"
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(__version__, "--version", "-V", prog_name="edgekit")
def group() -> None:
    """Put a trained PyTorch model on a device, with proof that it still works.

    \b
    edgekit export MODEL --recipe int4 -o DIR    make a bundle
    edgekit verify DIR                           prove that it computes what it should
    edgekit bench DIR [DIR2]                     measure it
    edgekit evaluate DIR [DIR2] --text FILE      how accurate it is
    edgekit generate DIR PROMPT                  run it
    edgekit devices setup ssh:HOST               then verify --target ssh:HOST
    edgekit help VERB                            what it does, with examples

    \b
    Completion: eval "$(_EDGEKIT_COMPLETE=bash_source edgekit)" in ~/.bashrc (zsh_source, fish_source likewise)

    Results go to stdout (with --json one JSON document and nothing else), progress to stderr. Exit codes: 0 done, 1 a
    check failed, 2 the call or the input is wrong, 70 a bug in edgekit, 130 interrupted, 141 nobody reads the output.
    """


for _verb in VERBS:
    group.add_command(_verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Set before anything can import onnxruntime, whose builds report home by default since 1.29.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("USE_HUB_KERNELS", "NO")  # transformers would fetch kernels and import them
    prepare_streams()
    try:
        with ended_like_ctrl_c():
            _run(given)
    except OSError as error:  # all others are handled: nobody takes what is printed
        _output_ended(error)


def _run(given: Sequence[str]) -> NoReturn:
    try:
        code = group.main(args=given, prog_name="edgekit", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except SystemExit:
        # click's own end where nobody reads the output any more is 1, which is a failed check here.
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):
            sys.exit(READER_WENT)
        raise
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        _fail(given, error.format_message(), error.exit_code, "UsageError")
    except (click.Abort, KeyboardInterrupt):
        _fail(given, "interrupted; nothing half-written was kept", INTERRUPTED, "Interrupted")
    except EdgekitError as error:
        _fail(given, str(error), error.exit_code, type(error).__name__)
    except Exception as error:
        if isinstance(error, OSError) and _is_of_output(error):
            raise
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            place = str(error.filename)[:120] if error.filename is not None else "a file or device"
            advice = "give another path, or check the disk"
            _fail(given, f"{place}: {error.strerror}; {advice}", UsageError.exit_code, "UsageError")
        traceback.print_exc()
        _fail(given, f"{type(error).__name__}: {error}; this is a bug in edgekit, please report it", BUG, "Bug")


def _fail(given: Sequence[str], message: str, code: int, kind: str) -> NoReturn:
    line = printable(" ".join(message.split()))
    if "--json" in given:
        click.echo(json.dumps({"error": {"kind": kind, "message": line, "exit_code": code}}, ensure_ascii=False))
    click.echo(f"edgekit: {line}", err=True)
    sys.exit(code)


def _is_of_output(error: OSError) -> bool:
    """Whether it was raised where something was printed."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == "click.utils"


def _output_ended(error: OSError) -> NoReturn:
    """Nobody reads any more (``| head``): quietly, as the shell's own tools end. A full disk: one line on stderr."""
    reader_went = isinstance(error, BrokenPipeError)
    with contextlib.suppress(OSError):
        if not reader_went:
            click.echo(f"edgekit: the output cannot be written ({error.strerror}); give it a place with room", err=True)
    # What is still in Python's buffer would be tried again at the end, with a traceback.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(READER_WENT if reader_went else UsageError.exit_code)
