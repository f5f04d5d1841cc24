"""``edgekit evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.console import examples, json_option, progress_bar, quiet_libraries, show, threads_option
from edgekit.spec.names import TEXT_TOKENS, WINDOW

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    epilog=examples(
        "edgekit evaluate build/int8 path/to/model --text notes.txt",
        "edgekit evaluate mymodel:build build/int8 --labels test.npz",
        "edgekit evaluate build/int8 build/int4 --choices questions.jsonl --page accuracy.html",
    )
)
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--text", "texts", multiple=True, type=FILE, help="Perplexity over this UTF-8 text; may be given several times."
)
@click.option(
    "--choices",
    multiple=True,
    type=FILE,
    help='Accuracy over questions, one JSON object a line: {"question": ..., "choices": [...], "answer": 0}.',
)
@click.option(
    "--tasks", default="", help="Tasks of lm-evaluation-harness, with commas between (needs edgekit[evaluate])."
)
@click.option(
    "--labels",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Accuracy of classifiers: an .npz with the model's inputs and 'labels', or a directory with a folder of pictures for each class.",
)
@click.option(
    "--tokens",
    default=TEXT_TOKENS,
    show_default=True,
    type=click.IntRange(0),
    help="First tokens of each text; 0 takes all.",
)
@click.option(
    "--window", default=WINDOW, show_default=True, type=click.IntRange(2), help="Tokens of context of the perplexity."
)
@click.option(
    "--questions", default=0, type=click.IntRange(0), help="First questions of each file or task. [default: all]"
)
@click.option("--page", type=click.Path(path_type=Path), help="Write one HTML page with plots against bytes.")
@threads_option
@json_option
def evaluate(
    models: tuple[str, ...], texts: tuple[Path, ...], choices: tuple[Path, ...], tasks: str, labels: tuple[Path, ...], tokens: int, window: int, questions: int,
    page: Path | None, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Score language models, or classifiers, on the same files.

    MODELS are bundles, and models as `edgekit export` takes them. Each model is a row with its bytes. Perplexity is over windows that do not overlap; a choice is scored by its log-likelihood per byte. With --labels every model is compared with the first, sample by sample.
    """
    quiet_libraries()
    from edgekit.evaluation import evaluate as run
    from edgekit.evaluation.page import check_place, write_page

    if page is not None:
        check_place(page)
    with progress_bar() as progress:
        found = run(
            models, texts=texts, choices=choices, tasks=[t for t in tasks.split(",") if t], labels=labels, threads=threads, most_tokens=tokens, window=window,
            most_questions=questions, progress=progress,
        )  # fmt: skip
    show(found.lines(), found.to_json(), as_json)
    if page is not None:
        write_page(found, page)
