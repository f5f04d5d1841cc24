"""``edgekit compress``."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from edgekit.cli import console
from edgekit.spec.methods import BY_NAME, METHODS


@click.command(
    epilog=console.examples(
        "edgekit compress path/to/model",
        "edgekit compress path/to/model --method gptq -o build/small",
        "edgekit compress path/to/model --method gptq --samples texts/ -o build/small",
        "edgekit compress path/to/model -c compress.yaml -o build/small",
        "edgekit compress my.module:build -c compress.yaml --method prune -o build/small --resume",
    )
    + "\n\n\b\nMethods:\n"
    + "\n".join(f"  {method.name:<14} {method.help}" for method in METHODS)
)
@click.argument("model")
@click.option(
    "--config",
    "-c",
    type=console.text_file,
    help="What to do: data, method, training (docs/rate-constrained.md, docs/ternary-training.md, "
    "docs/low-bit-accuracy.md). Without it and without --method MODEL's rate is reported and nothing is made.",
)
@click.option("--output", "-o", type=console.path, help="The model directory to make.")
@click.option(
    "--method",
    type=click.Choice(list(BY_NAME)),
    help="Instead of the one in the config; `none` trains without, as a baseline. gptq and ternarize need no config.",
)
@click.option(
    "--samples",
    type=console.path,
    help="Without a config: real text, a file or a directory of them, to calibrate with. [default: a shipped text]",
)
@click.option("--resume", is_flag=True, help="Go on with what was interrupted; the result is the same.")
@click.option("--force", is_flag=True, help="Begin anew, and replace a compressed model that is already there.")
@console.pickle_option
@click.option(
    "--step", type=float, help="Round to multiples of this in the report of a MODEL without config. [default: 2^-8]"
)
@console.json_option
def compress(
    model: str, config: Path | None, output: Path | None, samples: Path | None, step: float | None, allow_pickle: bool,
    as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Make MODEL smaller: train, prune or round it.

    `edgekit export` takes what comes out. MODEL is a Hugging Face directory or hub id, a .gguf file, or
    package.module:factory. Ctrl-C keeps a checkpoint for --resume. The rate of every weight is reported: shape, zeros,
    entropy, exp-Golomb bits.
    """
    console.quiet_libraries()
    from torch import distributed

    from edgekit.compression import compress as run
    from edgekit.compression import rate_of
    from edgekit.compression.settings import REPORT_STEP, Compression
    from edgekit.methods.resume import checkpoint_path, is_kept

    if config is None and not how["method"]:
        if output or samples or any(how.values()):
            raise click.UsageError("--output, --samples, --resume and --force need --method gptq, or --config FILE")
        report = rate_of(model, step or REPORT_STEP, allow_pickle=allow_pickle)
        console.show(report.lines(), report.to_json(), as_json)
        return
    if output is None or step is not None:
        raise click.UsageError("--config and --method need --output DIR; the step of their report is report_step")
    if config is not None and samples is not None:
        raise click.UsageError("--samples: the config has its own data; leave one of them out")
    settings = config or Compression.calibrated(how["method"], samples)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher started: the one that tells
    try:
        with console.progress_bar() if first else nullcontext(lambda what, share: None) as progress:
            compressed = run(model, settings, output, allow_pickle=allow_pickle, **how, progress=progress)
    except KeyboardInterrupt:
        if first and is_kept(checkpoint_path(output)):
            click.echo("edgekit: a checkpoint is kept; the same command with --resume goes on", err=True)
        raise
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if first:
        console.show(compressed.lines(), compressed.to_json(), as_json)
