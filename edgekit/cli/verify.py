"""``edgekit verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgekit.cli import console


@click.command(
    epilog=console.examples(
        "edgekit verify build/model",
        "edgekit verify build/model --original path/to/model --text notes.txt",
        "edgekit verify build/classifier --original mymodel:build --labels test.npz",
        "edgekit verify build/model --target local --target ssh:pi@raspberrypi",
    )
)
@click.argument("bundle", type=console.path)
@console.target_option
@console.threads_option
@click.option(
    "--original", metavar="MODEL", help="Compute the original's answers afresh (needs PyTorch and the model)."
)
@click.option("--text", type=console.text_file, help="Perplexity over your own text too.")
@click.option("--labels", type=console.existing, help=f"Score a classifier: {console.labels_help}")
@console.json_option
def verify(bundle: Path, targets: tuple[str, ...], threads: int, as_json: bool, **local: str | Path | None) -> None:
    """Prove that BUNDLE computes what it should.

    Its golden vectors are replayed: parity with the compressed PyTorch model, accuracy against the original: the model
    that it was exported from, or the one that --original names (after `edgekit compress` the float model, say). Exit
    code 1 when a limit of the recipe is missed; then the first layer that differs is named.

    \b
    --target ssh:[user@]host[:port]      on a Linux device: see `edgekit devices`
    --target local --target ssh:HOST     on both, side by side, and whether they agree
    """
    console.quiet_libraries()
    from edgekit.parity import Comparison, Report, verify_on
    from edgekit.parity import verify as run

    report: Report | Comparison
    with console.progress_bar() as progress:
        if len(targets) == 1:
            report = run(bundle, target=targets[0], threads=threads, **local, progress=progress)
        elif set(local.values()) == {None}:
            report = verify_on(bundle, targets, threads=threads, progress=progress)
        else:
            raise click.UsageError("--original, --text and --labels are for a single --target local; leave them out")
    console.show(report.lines(), report.to_json(), as_json)
    if isinstance(report, Comparison) and report.failures:
        sys.exit(2)
    if not report.passed:
        sys.exit(1)
