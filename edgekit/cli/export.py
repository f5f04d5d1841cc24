"""``edgekit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli import console
from edgekit.lowbit.library import ABIS, SHIPPED
from edgekit.recipe import shipped_recipes
from edgekit.spec.names import TASKS


@click.command(
    epilog=console.examples(
        "edgekit export path/to/model -o build/model",
        "edgekit export someone/model --recipe int4 -o build/model --samples notes.txt",
        "edgekit export my.module:build --recipe int8-static -o build/net --samples pictures",
    )
)
@click.argument("model")
@click.option(
    "--recipe",
    "-r",
    default="int8",
    help=f"A shipped recipe ({', '.join(shipped_recipes())}; see `edgekit recipes`) or a YAML file.",
)
@click.option("--output", "-o", required=True, type=console.path, help="The bundle directory to make.")
@click.option(
    "--samples",
    type=console.existing,
    help="Your own real input: a text, a directory of pictures (gray or RGB), an .npz, a .wav of speech. Without it "
    "verify says PASS only for models that read text or RGB pictures.",
)
@click.option("--task", type=click.Choice(TASKS), help="What the model does, where it cannot be told.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@console.pickle_option
@click.option(
    "--abi",
    "abis",
    multiple=True,
    type=click.Choice([*ABIS, "none"]),
    default=SHIPPED,
    help="A system that the bundle is for (several times for several; none: this machine). Bundles with ternary, "
    "int8-channel or sparse layers carry the operator library for each; layers are sparse only where that is faster on "
    "all.",
)
@console.json_option
def export(model: str, recipe: str, output: Path, abis: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Export MODEL as a bundle.

    The written model is loaded and must compute what the compressed PyTorch model does, or nothing is kept. MODEL is a
    Hugging Face directory or hub id, a .gguf, .pt2 or .onnx file, or package.module:factory.
    """
    console.quiet_libraries()
    from edgekit.exporter import export as run
    from edgekit.inspection import inspect

    with console.progress_bar() as progress:
        run(model, recipe, output, abis=[abi for abi in abis if abi != "none"], **options, progress=progress)
    bundle = inspect(output)  # named as the user did
    console.show(bundle.summary(), bundle.to_json(), as_json)
