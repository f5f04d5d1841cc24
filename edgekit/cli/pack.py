"""``edgekit pack`` and ``edgekit unpack``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgekit.cli import console


def _say_if_slow() -> None:
    from edgekit.coding import native

    if native.load() is None:
        click.echo("the library of packs is not built for this machine: numpy takes a hundred times as long", err=True)


@click.command(
    epilog=console.examples(
        "edgekit pack build/model -o model.edgepack",
        "edgekit pack build/new -o update.edgepack --base build/old --sign private.pem",
    )
)
@click.argument("bundle", type=console.path)
@click.option("--output", "-o", required=True, type=console.path, help="The file to make, such as model.edgepack.")
@click.option(
    "--base", type=console.path, help="An older version of BUNDLE that the receiver has: only what differs is packed."
)
@click.option("--sign", type=console.path, metavar="KEY", help="Sign with this private Ed25519 key (PEM).")
@click.option("--force", is_flag=True, help="Replace a pack that is already there.")
@console.json_option
def pack(bundle: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Pack BUNDLE as one file for download.

    Its bytes are entropy-coded. `edgekit unpack` and apps with edgekit's Android library make the bundle of it again,
    byte for byte.
    """
    from edgekit.coding import pack as run

    _say_if_slow()
    with console.progress_bar() as progress:
        made = run(bundle, output, **options, progress=progress)
    console.show(made.lines(), made.to_json(), as_json)


@click.command(
    epilog=console.examples(
        "edgekit unpack model.edgepack -o build/model",
        "edgekit unpack update.edgepack -o build/new --base build/old --verify-key public.pem",
        "edgekit unpack partial.edgepack -o build/model --resume",
    )
)
@click.argument("pack", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--output", "-o", required=True, type=console.path, help="The bundle directory to make.")
@click.option("--base", type=console.path, help="The older version that PACK was made from.")
@click.option(
    "--verify-key", type=console.path, metavar="PUB", help="Refuse PACK unless the owner of this public key signed it."
)
@click.option(
    "--resume", is_flag=True, help="Unpack what a download has brought so far, and go on there the next time."
)
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@console.json_option
def unpack(pack: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Make the bundle of PACK again.

    PACK is a file that `edgekit pack` made, or - for stdin. Every file is checked with the manifest's sha256 before any
    is seen under its name. With --resume exit code 1 says that more is to come.
    """
    from edgekit.coding import unpack as run

    if str(pack) == "-" and sys.stdin is None:
        raise click.UsageError("- is stdin, which is closed; give the pack as a file or through a pipe")
    source = sys.stdin.buffer if str(pack) == "-" else pack
    _say_if_slow()
    with console.progress_bar() as progress:
        made = run(source, output, **options, progress=progress)
    facts = {"bundle": str(made.directory), "files": len(made.manifest.files) + 1, "bytes": made.nbytes}
    console.show(
        [f"{made.directory}: {facts['files']} files, {facts['bytes']:,} bytes, as the manifest says"], facts, as_json
    )
