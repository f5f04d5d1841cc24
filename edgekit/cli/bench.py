"""``edgekit bench``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgekit.cli.console import examples, json_option, progress_bar, show, target_option
from edgekit.spec.names import BENCH_NEW, BENCH_PROMPT, ROUNDS


@click.command(
    epilog=examples(
        "edgekit bench build/int8 build/int4",
        "edgekit bench build/int8 --threads 1 --threads 4 --json",
        "edgekit bench build/int8 --target local --target ssh:pi@raspberrypi",
    )
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@target_option
@click.option(
    "--threads",
    "-t",
    multiple=True,
    default=(1,),
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Threads of ONNX Runtime; give it several times to compare.",
)
@click.option(
    "--prompt-tokens",
    default=BENCH_PROMPT,
    show_default=True,
    type=click.IntRange(2),
    help="Tokens of the prefill (language models).",
)
@click.option(
    "--new-tokens",
    default=BENCH_NEW,
    show_default=True,
    type=click.IntRange(2),
    help="Tokens decoded after it (language models).",
)
@click.option(
    "--rounds",
    default=ROUNDS,
    show_default=True,
    type=click.IntRange(ROUNDS),
    help="Rounds; bundles take turns in each, and fewer are too few to be quoted.",
)
@json_option
def bench(
    bundles: tuple[Path, ...], targets: tuple[str, ...], threads: tuple[int, ...], prompt_tokens: int, new_tokens: int,
    rounds: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure one or more BUNDLES.

    Load, first run, prefill and decode (or latency), memory, and the kernels that ran. Several bundles run in processes of their own and take turns, so that a drifting machine hits them alike. A row that
    cannot be trusted says INVALID and why. Devices (`--target ssh:HOST`) measure side by side, on their fastest cores.
    """
    from edgekit.benchmark import bench as run

    with progress_bar() as progress:
        result = run(
            bundles, targets=targets, threads=threads, prompt_tokens=prompt_tokens, new_tokens=new_tokens,
            rounds=rounds, progress=progress,
        )  # fmt: skip
    show(result.lines(), result.to_json(), as_json)
    if result.failures:
        sys.exit(2)
