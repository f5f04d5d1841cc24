"""``edgekit verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgekit.cli.console import (
    examples,
    json_option,
    progress_bar,
    quiet_libraries,
    show,
    target_option,
    threads_option,
)


@click.command(
    epilog=examples(
        "edgekit verify build/model",
        "edgekit verify build/model --original path/to/model --text notes.txt",
        "edgekit verify build/classifier --original mymodel:build --labels test.npz",
        "edgekit verify build/model --target local --target ssh:pi@raspberrypi",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@target_option
@threads_option
@click.option(
    "--original", metavar="MODEL", help="Compute the original's answers afresh (needs PyTorch and the model)."
)
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Perplexity over your own text too."
)
@click.option(
    "--labels",
    type=click.Path(exists=True, path_type=Path),
    help="Score a classifier: an .npz with the model's inputs and 'labels', or a directory with a folder of pictures for each class.",
)
@json_option
def verify(
    bundle: Path, targets: tuple[str, ...], threads: int, original: str | None, text: Path | None, labels: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Prove that BUNDLE computes what it should.

    Its golden vectors are replayed: parity with the compressed PyTorch model, accuracy against the original: the model that it was exported from, or the one that --original names (after `edgekit compress` the float model, say). Exit code 1 when a limit of the recipe is missed; then the first layer that differs is named.

    \b
    --target ssh:[user@]host[:port]      on a Linux device: see `edgekit devices`
    --target local --target ssh:HOST     on both, side by side, and whether they agree
    """
    quiet_libraries()
    from edgekit.parity import Comparison, Report, verify_on
    from edgekit.parity import verify as run

    found: Report | Comparison
    with progress_bar() as progress:
        if len(targets) == 1:
            found = run(
                bundle,
                target=targets[0],
                threads=threads,
                original=original,
                text=text,
                labels=labels,
                progress=progress,
            )
        elif original is None and text is None and labels is None:
            found = verify_on(bundle, targets, threads=threads, progress=progress)
        else:
            raise click.UsageError("--original, --text and --labels are for a single --target local; leave them out")
    show(found.lines(), found.to_json(), as_json)
    if isinstance(found, Comparison) and found.failures:
        sys.exit(2)
    if not found.passed:
        sys.exit(1)
