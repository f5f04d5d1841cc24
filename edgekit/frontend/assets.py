"""Files that travel with the weights: configuration, tokenizer, chat template, generation settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekit.errors import one_line

_NAMES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
# Any of these lets transformers build the tokenizer.json that the runtime reads.
_SLOW = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

log = logging.getLogger(__name__)


def collect(directory: Path, *, text: bool) -> tuple[tuple[Path, ...], Callable[[], None] | None]:
    """Configuration, tokenizer and generation files of ``directory``, and what deletes those that had to be made, or
    None.

    ``text``: the model reads tokens; without a tokenizer.json one is then made from the older files.
    """
    files = [directory / name for name in _NAMES if (directory / name).is_file()]
    files += sorted(p for p in directory.glob("chat_template*") if p.is_file())
    made = None
    if text and not (directory / "tokenizer.json").is_file():
        if any((directory / name).is_file() for name in _SLOW):
            made = _fast_tokenizer(directory)
        else:
            log.warning("%s: no tokenizer files; the bundle will take token ids only", directory)
    return (tuple(files), None) if made is None else ((Path(made.name) / "tokenizer.json", *files), made.cleanup)


def _fast_tokenizer(directory: Path) -> TemporaryDirectory[str] | None:
    from transformers import AutoTokenizer

    scratch = TemporaryDirectory(prefix="edgekit-tokenizer-", ignore_cleanup_errors=True)
    try:
        AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_fast=True
        ).save_pretrained(scratch.name)
    # A tokenizer is not worth failing an export for, and its loaders raise whatever their libraries do.
    except Exception as error:
        log.warning("%s: no tokenizer.json and none could be made (%s)", directory, one_line(error))
    if (Path(scratch.name) / "tokenizer.json").is_file():
        return scratch
    scratch.cleanup()
    return None
