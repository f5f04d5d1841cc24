"""Examples out of what the user has: texts for language models, arrays for everything else."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgekit.errors import SourceError, one_line
from edgekit.methods.examples import Examples
from edgekit.spec.names import LABELS
from edgekit.strict import read_text

TEXTS = (".txt", ".md")
EXPECTED = "text files, a directory of them, one .npz, or one package.module:function"


def text_files(paths: Sequence[Path]) -> list[Path]:
    """The given files, and all texts in and below given directories, in the order of their names."""
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if f.suffix.lower() in TEXTS and f.is_file())
            if not inside:
                raise SourceError(f"{path}: no file in it ends in {' or '.join(TEXTS)}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise SourceError(f"{path}: no such file or directory; data are {EXPECTED}")
    return files


def tokens(paths: Sequence[Path], encode: Callable[[str], Sequence[int]], length: int) -> Examples:
    """Texts one after the other in pieces of ``length`` tokens: input_ids int64 [n, length]; the last rest is left out, and
    so is a text that was there already.

    Raises SourceError for a file that is no UTF-8 text, or for less than one piece.
    """
    ids = torch.cat([torch.tensor(encode(text), dtype=torch.int64) for text in dict.fromkeys(_read(paths))])
    count = len(ids) // length
    if not count:
        raise SourceError(f"{paths[0]}: {len(ids)} tokens in all, fewer than one example of {length}; give more text")
    return Examples({"input_ids": ids[: count * length].view(count, length)})


def sentences(paths: Sequence[Path], tokenizer: Tokenizer, length: int, names: Sequence[str]) -> Examples:
    """Each sentence of the texts as an example for an encoder: input_ids, attention_mask and what else of ``names`` it
    takes.

    Sentences end at . ! ? or an empty line; those of less than three words are left out, beyond ``length`` tokens cut
    off.
    """
    texts = [
        " ".join(sentence.split())
        for text in _read(paths)
        for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text)
        if len(sentence.split()) >= 3
    ]
    if not texts:
        raise SourceError(f"{paths[0]}: no sentence of three words or more; give texts")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    columns = {
        "input_ids": [e.ids for e in encoded],
        "attention_mask": [e.attention_mask for e in encoded],
        "token_type_ids": [e.type_ids for e in encoded],
    }
    return Examples({name: torch.tensor(columns[name], dtype=torch.int64) for name in names if name in columns})


def _read(paths: Sequence[Path]) -> Iterator[str]:
    return (read_text(file, SourceError, f"data are {EXPECTED}") for file in text_files(paths))


def arrays(path: Path, inputs: Sequence[str]) -> Examples:
    """The arrays of an .npz, see :func:`named`. Raises SourceError when it cannot be read without pickle."""
    try:
        with np.load(path, allow_pickle=False) as file:
            loaded = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path}: not a readable .npz of plain arrays ({one_line(error, 120)})") from error
    return named(loaded, inputs, str(path))


def named(data: Any, inputs: Sequence[str], where: str) -> Examples:
    """What a file or function gave, as examples for a model whose inputs are called ``inputs``.

    ``data`` is a mapping of arrays, or (inputs, labels). A single input may have any name. Raises SourceError saying
    what is missing.
    """
    if isinstance(data, tuple) and len(data) == 2:
        features, labels = data
        data = {**(features if isinstance(features, Mapping) else {inputs[0]: features}), LABELS: labels}
    if not isinstance(data, Mapping):
        raise SourceError(f"{where}: gives a {type(data).__name__}; expected arrays by name, or (inputs, labels)")
    tensors = {str(name): _tensor(value, f"{where}: {name}") for name, value in data.items()}
    others = [name for name in tensors if name != LABELS]
    if len(inputs) == 1 and len(others) == 1:
        tensors[inputs[0]] = tensors.pop(others[0])
    wanted = [name for name in inputs if name in tensors]
    unknown = [name for name in tensors if name not in (*inputs, LABELS)]
    if not wanted or unknown:
        raise SourceError(
            f"{where}: holds {', '.join(tensors) or 'nothing'}; the model's inputs are {', '.join(inputs)}, and "
            "classes are called labels"
        )
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1 or not next(iter(lengths.values())):
        raise SourceError(f"{where}: arrays of {lengths} rows; all need the same number, at least 1")
    if LABELS in tensors:
        tensors[LABELS] = _labels(tensors[LABELS], where)
    return Examples({name: tensors[name] for name in (*wanted, LABELS) if name in tensors})


def split(examples: Examples, share: float, shuffle: bool) -> tuple[Examples, Examples]:
    """Examples to train with and held-out ones: the last ``share``, or some drawn with a fixed seed.

    Raises SourceError when one part would be empty.
    """
    count = max(1, round(share * len(examples)))
    if count >= len(examples):
        raise SourceError(
            f"data: {len(examples)} examples, too few to hold {share:.0%} of them out; give more, or data.evaluate"
        )
    order = torch.arange(len(examples))
    if shuffle:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    return Examples(examples.select(order[:-count])), Examples(examples.select(order[-count:]))


def digest(examples: Examples) -> str:
    """A checksum of all arrays, to tell other data from the same."""
    value = 0
    for name, array in examples.arrays.items():
        value = zlib.crc32(array.contiguous().numpy().data, zlib.crc32(f"{name}{tuple(array.shape)}".encode(), value))
    return f"{value:08x}"


def _tensor(value: Any, where: str) -> Tensor:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise SourceError(
            f"{where}: {array.dtype} {list(array.shape)} is no array of numbers with a row for each example"
        )
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))
    if array.dtype == np.uint8 and array.ndim > 1:
        raise SourceError(
            f"{where}: uint8 {list(array.shape)}; store pixels as float32, scaled as the model wants them"
        )
    return torch.from_numpy(np.ascontiguousarray(array, np.int64))


def _labels(labels: Tensor, where: str) -> Tensor:
    if labels.is_floating_point() or labels.ndim != 1:
        kind = str(labels.dtype).removeprefix("torch.")
        raise SourceError(
            f"{where}: labels are {kind} {list(labels.shape)}; a class is a whole number, one for each example"
        )
    return labels
