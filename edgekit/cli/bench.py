"""``edgekit bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgekit.cli import console
from edgekit.spec.names import BENCH_NEW, BENCH_PROMPT, ROUNDS


@click.command(
    epilog=console.examples(
        "edgekit bench build/int8 build/int4",
        "edgekit bench build/int8 --threads 1 --threads 4 --json",
        "edgekit bench build/int8 --target local --target ssh:pi@raspberrypi",
    )
)
@click.argument("bundles", nargs=-1, required=True, type=console.path)
@console.target_option
@click.option(
    "--threads",
    "-t",
    multiple=True,
    default=(1,),
    type=console.THREADS,
    help="Threads of ONNX Runtime; give it several times to compare.",
)
@click.option(
    "--prompt-tokens", default=BENCH_PROMPT, type=click.IntRange(2), help="Tokens of the prefill (language models)."
)
@click.option(
    "--new-tokens", default=BENCH_NEW, type=click.IntRange(2), help="Tokens decoded after it (language models)."
)
@click.option(
    "--rounds",
    default=ROUNDS,
    type=click.IntRange(ROUNDS),
    help="Rounds; bundles take turns in each, and fewer are too few to be quoted.",
)
@console.json_option
def bench(bundles: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Measure one or more BUNDLES.

    Load, first run, prefill and decode (or latency), memory, and the kernels that ran. Several bundles run in
    processes of their own and take turns, so that a drifting machine hits them alike. A row that cannot be trusted
    says INVALID and why. Devices (`--target ssh:HOST`) measure side by side, on their fastest cores.
    """
    from edgekit.benchmark import bench as run

    with console.progress_bar() as progress:
        result = run(bundles, **options, progress=progress)
    console.show(result.lines(), result.to_json(), as_json)
    if result.failures:
        sys.exit(2)
