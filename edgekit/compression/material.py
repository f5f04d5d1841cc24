"""Examples for a model that was read: from texts with its tokenizer, from arrays, or from the user's function."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn

from edgekit.compression.settings import Compression, Data
from edgekit.errors import CheckFailed, EdgekitError, SourceError
from edgekit.frontend import factory
from edgekit.frontend.inputs import vocabulary_size
from edgekit.frontend.samples import general_texts
from edgekit.frontend.source import ModuleSource
from edgekit.methods.example_files import arrays, named, sentences, split, tokens
from edgekit.methods.examples import CLASSES, EMBEDDINGS, LANGUAGE, Examples, Objective, with_reference
from edgekit.spec.names import LABELS

WINDOW = 256
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Material:
    """What there is to learn, and to learn it from."""

    objective: Objective
    train: Examples
    evaluation: Examples

    def batches(self, count: int, size: int) -> list[dict[str, Tensor]]:
        """The model's inputs of ``count`` examples to train with, drawn at random with a fixed seed, ``size`` at a time."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]
        return [self.objective.inputs(batch) for batch in Examples(self.train.select(order)).batches(size)]

    def scores(self, name: str, model: nn.Module) -> dict[str, float]:
        """Scores on the held-out examples, before any step. Raises CheckFailed when they are not finite."""
        scores = self.objective.evaluate(model, self.evaluation)
        if not all(math.isfinite(score) for score in scores.values()):
            raise CheckFailed(
                f"{name}: its scores on the held-out examples are {scores}; a model must give finite numbers"
            )
        return {"step": 0, **scores}


def material(source: ModuleSource, settings: Compression, directory: Path) -> Material | None:
    """The data of ``settings`` for a model; None when they name none. Paths are relative to ``directory``.

    Raises SourceError when data and model do not fit each other.
    """
    if settings.data is None:
        return None
    objective = {"text-generation": LANGUAGE, "feature-extraction": EMBEDDINGS}.get(source.task, CLASSES)
    train = _examples(source, settings.data, settings.data.train, directory)
    if settings.data.evaluate:
        evaluation = _examples(source, settings.data, settings.data.evaluate, directory)
    else:
        train, evaluation = split(train, settings.data.held_out, shuffle=objective is not LANGUAGE)
    if settings.data.filled and objective is LANGUAGE:
        texts = general_texts(besides=settings.data.train[0])
        train = filled(train, settings.calibration.examples, texts, _tokenizer(source, directory).encode)
    if settings.data.most:
        train = Examples(train.select(slice(0, settings.data.most)))
    for which, examples in (("train", train), ("evaluate", evaluation)):
        if objective is CLASSES and LABELS not in examples.arrays:
            raise SourceError(f"compress.data.{which}: has no labels; a classifier learns from an array called labels")
        _check_ids(source, which, examples)
        _try(source, objective, examples)
    if objective is EMBEDDINGS:
        train, evaluation = with_reference(source.module, train), with_reference(source.module, evaluation)
    return Material(objective, train, evaluation)


def filled(train: Examples, count: int, texts: Sequence[str], encode: Callable[..., Encoding]) -> Examples:
    """``train``, input_ids [n, T], and where n < ``count`` windows of ``texts`` too, about as many of each, drawn at random
    with a fixed seed."""
    mine = train.arrays["input_ids"]
    draw, windows = torch.Generator().manual_seed(0), [mine]
    for kind, text in enumerate(texts if len(mine) < count else ()):
        ids = torch.tensor(encode(text, add_special_tokens=False).ids, dtype=torch.int64)
        pieces = ids[: len(ids) // mine.shape[1] * mine.shape[1]].view(-1, mine.shape[1])
        missing = count - sum(map(len, windows))
        windows.append(pieces[torch.randperm(len(pieces), generator=draw)[: -(-missing // (len(texts) - kind))]])
    return Examples({"input_ids": torch.cat(windows)})


def _examples(source: ModuleSource, data: Data, places: tuple[str, ...], directory: Path) -> Examples:
    names = _input_names(source)
    first = places[0]
    if len(places) == 1 and _FUNCTION.fullmatch(first) and not (directory / first).exists():
        return named(factory.call(first), names, first)
    paths = [directory / Path(path).expanduser() for path in places]
    if any(path.suffix == ".npz" for path in paths):
        if len(paths) > 1:
            raise SourceError(f"{first}: one .npz stands alone; {len(places)} paths are given")
        return arrays(paths[0], names)
    return _texts(source, data, paths, names)


def _texts(source: ModuleSource, data: Data, paths: list[Path], names: list[str]) -> Examples:
    """Pieces of text for language models, sentences for encoders."""
    if "input_ids" not in names or source.task not in ("text-generation", "feature-extraction"):
        raise SourceError(
            f"{paths[0]}: texts are for language models and encoders; {source.architecture} takes {', '.join(names)}: "
            "give an .npz with those and labels"
        )
    read = _tokenizer(source, paths[0])
    limit = getattr(source.config, "max_position_embeddings", None)
    length = data.length or min(WINDOW, limit or WINDOW)
    if limit is not None and length > limit:
        raise SourceError(f"compress.data.length: {data.length} tokens, {source.architecture} takes at most {limit}")
    if source.task == "feature-extraction":
        return sentences(paths, read, length, names)
    return tokens(paths, lambda text: read.encode(text, add_special_tokens=False).ids, length)


def _tokenizer(source: ModuleSource, text: Path) -> Tokenizer:
    """The model's own, to read ``text`` with."""
    file = next((p for p in source.assets if p.name == "tokenizer.json"), None)
    if file is None:
        raise SourceError(
            f"{source.name}: has no tokenizer.json to read {text} with; give an .npz with input_ids [n, T]"
        )
    tokenizer = read_tokenizer(file)
    # Some files carry the lengths of their training pipeline.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json. Raises SourceError for anything else."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # what the library raises has no type of its own
        raise SourceError(f"{file}: not a readable tokenizer ({str(error)[:100]}); restore the file") from error


def near(directory: Path, name: str) -> str:
    """A model that a configuration in ``directory`` names: a path relative to it if there is one, else the name."""
    path = directory / Path(name).expanduser()
    return str(path) if path.exists() else name


def _input_names(source: ModuleSource) -> list[str]:
    if source.example_inputs:
        return list(source.example_inputs)
    if source.task == "text-generation":
        return ["input_ids"]
    takes = inspect.signature(source.module.forward).parameters
    return [name for name in INPUTS if name in takes] or list(takes)


def _check_ids(source: ModuleSource, which: str, examples: Examples) -> None:
    """Token ids that the model has no row for end in an index error somewhere in a training, or in a wrong row."""
    ids, count = examples.arrays.get("input_ids"), vocabulary_size(source.module)
    if ids is None or count is None or (int(ids.min()) >= 0 and int(ids.max()) < count):
        return
    raise SourceError(
        f"compress.data.{which}: token ids {int(ids.min())} to {int(ids.max())}, {source.architecture} has 0 to "
        f"{count - 1}; give data of its own tokenizer"
    )


def _try(source: ModuleSource, objective: Objective, examples: Examples) -> None:
    """Two examples, before anything takes long."""
    try:
        two = Examples(examples.select(slice(0, 2)))
        objective.evaluate(source.module, with_reference(source.module, two) if objective is EMBEDDINGS else two)
    except EdgekitError:
        raise
    except Exception as error:  # a model fails on wrong input in any way
        shapes = ", ".join(
            f"{n} {str(a.dtype).removeprefix('torch.')}{list(a.shape[1:])}" for n, a in examples.arrays.items()
        )
        raise SourceError(
            f"{source.name}: {source.architecture} does not run on the data ({shapes}): "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
