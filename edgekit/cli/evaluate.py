"""``edgekit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli import console
from edgekit.spec.names import TEXT_TOKENS, WINDOW


@click.command(
    epilog=console.examples(
        "edgekit evaluate build/int8 path/to/model --text notes.txt",
        "edgekit evaluate mymodel:build build/int8 --labels test.npz",
        "edgekit evaluate build/int8 build/int4 --choices questions.jsonl --page accuracy.html",
    )
)
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=console.text_file,
    help="Perplexity over this UTF-8 text; may be given several times.",
)
@click.option(
    "--choices",
    multiple=True,
    type=console.text_file,
    help='Accuracy over questions, one JSON object a line: {"question": ..., "choices": [...], "answer": 0}.',
)
@click.option("--tasks", help="Tasks of lm-evaluation-harness, with commas between (needs edgekit[evaluate]).")
@click.option("--labels", multiple=True, type=console.existing, help=f"Accuracy of classifiers: {console.labels_help}")
@click.option(
    "--tokens",
    "most_tokens",
    default=TEXT_TOKENS,
    type=click.IntRange(0),
    help="First tokens of each text; 0 takes all.",
)
@click.option("--window", default=WINDOW, type=click.IntRange(2), help="Tokens of context of the perplexity.")
@click.option(
    "--questions",
    "most_questions",
    default=0,
    show_default="all",
    type=click.IntRange(0),
    help="First questions of each file or task.",
)
@click.option("--page", type=console.path, help="Write one HTML page with plots against bytes.")
@console.threads_option
@console.json_option
def evaluate(models: tuple[str, ...], tasks: str | None, page: Path | None, as_json: bool, **options: Any) -> None:
    """Score language models, or classifiers, on the same files.

    MODELS are bundles, and models as `edgekit export` takes them. Each model is a row with its bytes. Perplexity is
    over windows that do not overlap; a choice is scored by its log-likelihood per byte. With --labels every model is
    compared with the first, sample by sample.
    """
    console.quiet_libraries()
    from edgekit.evaluation import evaluate as run
    from edgekit.evaluation.page import check_place, write_page

    if page is not None:
        check_place(page)
    with console.progress_bar() as progress:
        evaluation = run(models, tasks=[t for t in (tasks or "").split(",") if t], **options, progress=progress)
    console.show(evaluation.lines(), evaluation.to_json(), as_json)
    if page is not None:
        write_page(evaluation, page)
