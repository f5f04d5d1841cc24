"""What a model is traced with, calibrated on and judged by: resolved once, from the source and `--samples`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from edgekit.errors import SourceError
from edgekit.frontend.pooling import TextEncoder
from edgekit.frontend.samples import (
    COLOURS,
    DATA,
    IMAGE_SUFFIXES,
    Batch,
    arrays,
    padded,
    picture_files,
    pictures,
    sentences,
    tokens,
)
from edgekit.frontend.source import ExportedSource, ModelInput, ModuleSource, OnnxSource, Source
from edgekit.spec.names import LABELS

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEXT_TOKENS, SENTENCE_TOKENS, SENTENCES_A_BATCH = 512, 64, 8
MOST_VECTORS = 16
"""Batches that become golden vectors."""


@dataclass(frozen=True)
class Inputs:
    """Batches for a model, each by input name; a decoder has one of input_ids int64 [1, T], T <= 512.

    Attributes:
        kind: of the golden vectors made of them. "text" and "sample" are real; "random" is a model's own example input,
            or token ids drawn at random, of which nobody said that they are real.
        origin: where they come from, for messages.
    """

    batches: tuple[Batch, ...]
    kind: str
    origin: str

    def for_calibration(self, count: int) -> list[Batch]:
        """Up to ``count`` batches to find activation ranges with; pictures also mirrored and cropped, for there are few."""
        batches = list(self.batches)
        if all(a.ndim == 4 and a.dtype == np.float32 for batch in batches for a in batch.values()):
            batches += [{n: variant(a) for n, a in batch.items()} for variant in VARIANTS for batch in self.batches]
        return batches[:count]


def resolve(source: Source, samples: Path | None, most: int = MOST_VECTORS) -> Inputs:
    """Reads ``samples`` for a model: a text, a directory of pictures or an .npz; without it what ships with edgekit.

    Where neither fits the model, its own example inputs are taken, and random token ids for a decoder without a
    tokenizer. ``most`` limits the pictures that are read. Raises SourceError when what is given cannot be this model's
    input, with what the model takes.
    """
    declared = model_inputs(source)
    if samples is None:
        return _shipped(source, declared, most)
    if samples.suffix == ".npz":
        inputs = Inputs(tuple(_from_arrays(source, declared, samples)), "sample", str(samples))
    elif samples.is_dir() or samples.suffix.lower() in IMAGE_SUFFIXES:
        inputs = _from_pictures(source, _picture_input(source, declared, samples), samples, most)
    else:
        inputs = _from_text(source, declared, samples)
    _try(source, inputs)
    return inputs


def example(source: ModuleSource, inputs: Inputs) -> Batch:
    """One batch to trace with, at least 2 in it: torch.export takes a batch of one for a constant."""
    examples = {name: tensor.numpy() for name, tensor in source.example_inputs.items()}
    return {
        name: np.concatenate([array, array]) if array.ndim and array.shape[0] == 1 else array
        for name, array in (examples or inputs.batches[0]).items()
    }


def model_inputs(source: Source) -> tuple[ModelInput, ...]:
    """What a model takes. A module's batch is of any size, and so are its texts."""
    if not isinstance(source, ModuleSource):
        return source.inputs
    if _is_decoder(source):
        return (ModelInput("input_ids", "int64", (None, None)),)
    if source.example_inputs:
        return tuple(_of_example(name, tensor.numpy()) for name, tensor in source.example_inputs.items())
    parameters = inspect.signature(source.module.forward).parameters
    if "input_ids" in parameters:
        kinds = int(getattr(source.config, "type_vocab_size", 0) or 0)
        names = [n for n in TEXT_INPUTS if n in parameters and (n != "token_type_ids" or kinds > 1)]
        return tuple(ModelInput(name, "int64", (None, None)) for name in names)
    size = getattr(source.config, "image_size", None)
    if "pixel_values" in parameters and size is not None:
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = int(getattr(source.config, "num_channels", 3))
        return (ModelInput("pixel_values", "float32", (None, channels, int(height), int(width))),)
    return (ModelInput(str(getattr(source.module, "main_input_name", next(iter(parameters), "")))),)


def plain(where: str, examples: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Example inputs that numpy can hold. Raises SourceError for other types."""
    for name, tensor in examples.items():
        try:
            tensor.detach().numpy()
        except (TypeError, RuntimeError) as error:
            kind = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
            raise SourceError(
                f"{where}: example input '{name}' is {kind}; give a plain float32 or integer tensor"
            ) from error
    return {name: tensor.detach() for name, tensor in examples.items()}


def _of_example(name: str, array: np.ndarray) -> ModelInput:
    free = 2 if name in TEXT_INPUTS else 1
    return ModelInput(name, array.dtype.name, tuple(None if i < free else d for i, d in enumerate(array.shape)))


def _shipped(source: Source, declared: Sequence[ModelInput], most: int) -> Inputs:
    """Prose or photos where the model reads such, else its own example inputs."""
    if _reads_text(source, declared):
        return _from_text(source, declared, None)
    if _is_decoder(source):
        ids = np.random.default_rng(0).integers(0, vocabulary_size(source.module) or 1, (1, TEXT_TOKENS))
        return Inputs(({"input_ids": ids},), "random", "random token ids")
    picture = _as_picture(declared)
    if picture is not None and picture[1] == 3 and (picture[0].dims or (None,))[0] in (None, 1):
        return _from_pictures(source, picture, None, most)
    if not isinstance(source, OnnxSource) and source.example_inputs:
        batch = {name: tensor.numpy() for name, tensor in source.example_inputs.items()}
        return Inputs((batch,), "random", "its example inputs")
    raise SourceError(f"{source.name}: no real input is known for {_takes(source, declared)}")


def _is_decoder(source: Source) -> TypeGuard[ModuleSource]:
    return isinstance(source, ModuleSource) and source.task == "text-generation"


def _reads_text(source: Source, declared: Sequence[ModelInput]) -> bool:
    return (
        any(i.name == "input_ids" for i in declared)
        and all(i.name in TEXT_INPUTS and i.dtype.startswith("int") and len(i.dims or ()) == 2 for i in declared)
        and _tokenizer(source) is not None
    )


def _takes(source: Source, declared: Sequence[ModelInput]) -> str:
    """What the model takes, and how the user can give it."""
    listed = ", ".join(str(i) for i in declared)
    text = "a .txt file or " if _reads_text(source, declared) else ""
    picture = "a directory of pictures or " if _as_picture(declared) is not None else ""
    return f"{listed}; give --samples {text or picture}an .npz with arrays of these names"


def _refusal(source: Source, declared: Sequence[ModelInput], samples: Path | str, problem: str) -> SourceError:
    return SourceError(f"{samples}: {problem}; {source.name} takes {_takes(source, declared)}")


def _tokenizer(source: Source) -> Path | None:
    return next((path for path in source.assets if path.name == "tokenizer.json"), None)


def _from_text(source: Source, declared: Sequence[ModelInput], samples: Path | None) -> Inputs:
    """A decoder's text, or an encoder's sentences in batches of 8."""
    file, where = _tokenizer(source), str(samples or "the shipped prose")
    known = {i.name: i for i in declared}
    if not _reads_text(source, declared) or file is None:
        missing = "input_ids" in known and file is None
        why = "there is no tokenizer.json to read it with" if missing else f"{source.name} takes no text"
        raise _refusal(source, declared, where, f"a text, but {why}")
    if _is_decoder(source):
        return Inputs(({"input_ids": tokens(file, samples, TEXT_TOKENS)},), "text", where)
    count, length = known["input_ids"].dims or (None, None)
    rows = sentences(file, samples, min(length or SENTENCE_TOKENS, SENTENCE_TOKENS))
    step = count or SENTENCES_A_BATCH
    groups = [rows[i : i + step] for i in range(0, len(rows), step)]
    whole = [group for group in groups if count in (None, len(group))]
    if not whole:
        raise _refusal(source, declared, where, f"{len(rows)} sentences are less than one batch")
    batches = [padded(group, length or max(len(row) for row in group)) for group in whole]
    typed = [{n: b[n].astype(known[n].dtype) for n in known} for b in batches]
    return Inputs(tuple(typed), "sample", where)


def _as_picture(declared: Sequence[ModelInput]) -> tuple[ModelInput, int, tuple[int, int]] | None:
    """The one input of a model that takes pictures, its channels and its height and width."""
    if len(declared) != 1 or declared[0].dims is None or len(declared[0].dims) != 4:
        return None
    _, channels, height, width = declared[0].dims
    if channels not in COLOURS or not height or not width or not declared[0].dtype.startswith("float"):
        return None
    return declared[0], channels, (height, width)


def _picture_input(
    source: Source, declared: Sequence[ModelInput], samples: Path
) -> tuple[ModelInput, int, tuple[int, int]]:
    picture = _as_picture(declared)
    if picture is not None:
        return picture
    what = "a directory" if samples.is_dir() else "a picture"
    raise _refusal(
        source, declared, samples,
        f"{what}, but pictures are read for models with one float input [n, 1 or 3, height, width] only",
    )  # fmt: skip


def _from_pictures(
    source: Source, picture: tuple[ModelInput, int, tuple[int, int]], samples: Path | None, most: int
) -> Inputs:
    declared, channels, size = picture
    folder = samples or DATA / "photos"
    pixels = pictures(picture_files(folder, most), channels, size, _directory(source)).astype(declared.dtype)
    step = (declared.dims or (None,))[0] or 1
    whole = pixels[: max(step, len(pixels) // step * step)]
    batches = _split(source, (declared,), folder, {declared.name: whole})
    return Inputs(tuple(batches), "sample", str(folder))


def _directory(source: Source) -> Path | None:
    """Where preprocessor_config.json may lie."""
    if isinstance(source, ExportedSource):
        return None
    return source.path.parent if isinstance(source, OnnxSource) else source.directory


def _from_arrays(source: Source, declared: Sequence[ModelInput], samples: Path) -> list[Batch]:
    """The samples of an .npz. Raises SourceError for other names, types or shapes than the model's."""
    given = arrays(samples)
    if LABELS not in {i.name for i in declared}:
        given.pop(LABELS, None)  # for `verify --labels` with the same file
    for name in [i.name for i in declared if i.name not in given]:
        raise _refusal(source, declared, samples, f"has no array '{name}', only {', '.join(given) or 'nothing'}")
    for name in given.keys() - {i.name for i in declared}:
        raise _refusal(source, declared, samples, f"array '{name}' is no input of the model")
    for one in declared:
        array = given[one.name]
        fits = (
            array.ndim > 0
            if one.dims is None
            else (
                array.dtype.name == one.dtype
                and array.ndim == len(one.dims)
                and all(d in (None, size) for d, size in zip(one.dims[1:], array.shape[1:], strict=True))
            )
        )
        if not fits:
            shape = f"{array.dtype.name} {list(array.shape)}"
            raise _refusal(source, declared, samples, f"array '{one.name}' is {shape}")
    _check_ids(source, samples, given.get("input_ids"))
    if _is_decoder(source):
        if given["input_ids"].shape[0] != 1 or given["input_ids"].shape[1] < 2:
            raise _refusal(
                source, declared, samples, f"input_ids is {list(given['input_ids'].shape)}, not one text [1, T]"
            )
        return [{"input_ids": given["input_ids"][:, :TEXT_TOKENS]}]
    return _split(source, declared, samples, given)


def _check_ids(source: Source, samples: Path, ids: np.ndarray | None) -> None:
    count = vocabulary_size(source.module) if isinstance(source, ModuleSource) else None
    if ids is None or not ids.size or count is None or (ids.min() >= 0 and ids.max() < count):
        return
    raise SourceError(f"{samples}: input_ids are {ids.min()} to {ids.max()}, {source.name} has tokens 0 to {count - 1}")


def vocabulary_size(module: Any) -> int | None:
    """Rows of a transformers model's token table; None for other modules."""
    inner: Any = module.model if isinstance(module, TextEncoder) else module
    table = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    return getattr(table, "num_embeddings", None)


def _split(
    source: Source, declared: Sequence[ModelInput], samples: Path, given: Mapping[str, np.ndarray]
) -> list[Batch]:
    """Batches of as many samples as the model takes at once, of one where it takes any number."""
    steps = {i.name: (i.dims[0] if i.dims else None) or 1 for i in declared if i.dims != ()}
    counts = {name: len(given[name]) / step for name, step in steps.items()}
    count = next(iter(counts.values()), 1)
    if len(set(counts.values())) > 1 or count < 1 or count != int(count):
        sizes = ", ".join(f"{len(given[name])} of {name}" for name in steps)
        raise _refusal(source, declared, samples, f"holds {sizes}, which are no whole batches")
    return [
        {n: given[n][i * steps[n] : (i + 1) * steps[n]] if n in steps else given[n] for n in given}
        for i in range(int(count))
    ]


def _try(source: Source, inputs: Inputs) -> None:
    """One batch through the model, before anything takes long; a decoder takes all ids that it has."""
    if isinstance(source, OnnxSource) or _is_decoder(source):
        return
    module: Any = source.module.float() if isinstance(source, ModuleSource) else source.module
    try:
        with torch.no_grad():
            module(**{name: torch.from_numpy(array) for name, array in inputs.batches[0].items()})
    except Exception as error:  # a model fails on wrong input in any way
        words = " ".join(str(error).split())[:200]
        raise SourceError(f"{inputs.origin}: {source.name} does not run on it ({words})") from error


def _cropped(images: np.ndarray, share: float, bottom: bool, right: bool) -> np.ndarray:
    """A corner of float32 [B, C, H, W], ``share`` of each side, blown up again to the full size."""
    height, width = images.shape[2:]
    rows, columns = ((np.arange(size) * share).astype(int) for size in (height, width))
    rows = rows + (height - 1 - rows[-1]) * bottom
    columns = columns + (width - 1 - columns[-1]) * right
    return np.ascontiguousarray(images[:, :, rows][:, :, :, columns])


def _mirrored(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[..., ::-1])


VARIANTS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    _mirrored,
    *(partial(_cropped, share=s, bottom=b, right=r) for s in (0.8, 0.6) for b in (False, True) for r in (False, True)),
)
