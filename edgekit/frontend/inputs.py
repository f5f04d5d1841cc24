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

from edgekit.errors import SourceError, one_line
from edgekit.frontend import samples as read
from edgekit.frontend.answers import transcript
from edgekit.frontend.pooling import TEXT_INPUTS, TextEncoder
from edgekit.frontend.samples import COLOURS, IMAGE_SUFFIXES, Batch
from edgekit.frontend.sound import speech_like
from edgekit.frontend.source import ExportedSource, Hearing, ModelInput, ModuleSource, OnnxSource, Source
from edgekit.spec.names import CROSS_TASKS, DECODERS, ENCODER, LABELS, SHORTEST_SOUND, SOUND
from edgekit.wav import read_wav

PAIR_TOKENS = 96
"""Tokens of an encoder's source at most, and of its decoder's answer."""
SOUND_SECONDS, MADE_UP_SECONDS = 30, 3
"""Of sound that a golden vector holds at most, and that is made up where none is given."""
TEXT_TOKENS, CALIBRATION_TOKENS, SENTENCE_TOKENS, SENTENCES_A_BATCH = 512, 256, 64, 8
MOST_VECTORS = 16
"""Batches that become golden vectors."""


@dataclass(frozen=True)
class Inputs:
    """Batches for a model, each by input name; a decoder has one of input_ids int64 [1, T], T <= 512.

    ``kind`` is that of the golden vectors made of them. "text" and "sample" are real; "random" is a model's own example
    input, or token ids drawn at random, of which nobody said that they are real.
    """

    batches: tuple[Batch, ...]
    kind: str
    origin: str  # where they come from, for messages

    def for_calibration(self, count: int) -> list[Batch]:
        """Up to ``count`` batches to find activation ranges with; pictures, which are few, also mirrored and cropped."""
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
    reader = _Reader(source, model_inputs(source))
    if samples is None:
        return reader.shipped(most)
    inputs = reader.given(samples, most)
    _try(source, inputs)
    return inputs


def calibration(source: Source, inputs: Inputs, samples: Path | None, count: int, length: int) -> list[Batch]:
    """Up to ``count`` samples of real input to find out which of a layer's inputs are large; none where none is known.

    Of a text they are drawn at random (a decoder's windows of at most ``length`` tokens, an encoder's batches of 8
    sentences), and are not what the golden vectors hold; pictures and arrays are few, and the same.
    """
    if inputs.kind == "random":
        return []
    reader = _Reader(source, model_inputs(source))
    text = samples is None or not (samples.is_dir() or samples.suffix.lower() in (".npz", *IMAGE_SUFFIXES))
    if not (text and reader.reads_text()):
        return inputs.for_calibration(count)
    return reader.calibration_text(samples, count, length)


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
    parameters = list(inspect.signature(source.module.forward).parameters)
    text = source.module.taken if isinstance(source.module, TextEncoder) else parameters
    if source.hearing is not None:
        return (ModelInput(SOUND, "float32", (None, None)),)
    kinds = int(getattr(getattr(source.config, "text_config", source.config), "type_vocab_size", 0) or 0)
    names = [n for n in TEXT_INPUTS if n in text and (n != "token_type_ids" or kinds > 1)]
    declared = [ModelInput(name, "int64", (None, None)) for name in names if "input_ids" in text]
    vision = getattr(source.config, "vision_config", source.config)  # of CLIP, which reads both
    size = getattr(vision, "image_size", None)
    if "pixel_values" in parameters and size is not None:
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = int(getattr(vision, "num_channels", 3))
        declared.append(ModelInput("pixel_values", "float32", (None, channels, int(height), int(width))))
    if hasattr(source.config, "num_feat_extract_layers"):  # Wav2Vec2 and its kin read sound of any length
        declared.append(ModelInput("input_values", "float32", (None, None)))
    return tuple(declared) or (ModelInput(str(getattr(source.module, "main_input_name", next(iter(parameters), "")))),)


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


@dataclass(frozen=True)
class _Reader:
    """Reads input for one model; ``declared`` is what it takes."""

    source: Source
    declared: tuple[ModelInput, ...]

    def shipped(self, most: int) -> Inputs:
        """Prose or photos where the model reads such, else its own example inputs."""
        source, picture = self.source, self.picture()
        if self.hearing is not None:
            return self.heard(self.hearing, None)
        if self.reads_text():
            return self.text(None)
        if _is_decoder(source):
            ids = np.random.default_rng(0).integers(0, vocabulary_size(source.module) or 1, (1, TEXT_TOKENS))
            padding = getattr(source.config, "pad_token_id", None)  # in no text: RoBERTa counts no position for it
            ids[ids == padding] = 1 if padding == 0 else 0
            return Inputs((_of_decoder(source, ids),), "random", "random token ids")
        if picture is not None and picture.channels == 3 and picture.batch == 1:
            return self.pictures(picture, read.DATA / "photos", most)
        if not isinstance(source, OnnxSource) and source.example_inputs:
            batch = {name: tensor.numpy() for name, tensor in source.example_inputs.items()}
            return Inputs((batch,), "random", "its example inputs")
        raise SourceError(f"{source.name}: no real input is known for {self.takes()}")

    def given(self, samples: Path, most: int) -> Inputs:
        """What ``samples`` holds."""
        if self.hearing is not None:
            return self.heard(self.hearing, samples)
        if samples.suffix == ".npz":
            return Inputs(tuple(self.arrays(samples)), "sample", str(samples))
        if not samples.is_dir() and samples.suffix.lower() not in IMAGE_SUFFIXES:
            return self.text(samples)
        picture = self.picture()
        if picture is None:
            what = "a directory" if samples.is_dir() else "a picture"
            only = "pictures are read for models with one float input [n, 1 or 3, height, width] only"
            raise self.refusal(samples, f"{what}, but {only}")
        return self.pictures(picture, samples, most)

    @property
    def hearing(self) -> Hearing | None:
        return self.source.hearing if isinstance(self.source, ModuleSource) else None

    def heard(self, hearing: Hearing, samples: Path | None) -> Inputs:
        """A sound; for the decoder behind the encoder also what the model writes down of it."""
        if samples is None:
            sound, origin = speech_like(MADE_UP_SECONDS, hearing.rate), "a made-up sound"
        elif samples.suffix.lower() == ".wav":
            sound, origin = read_wav(samples, hearing.rate, SourceError), str(samples)
        else:
            raise SourceError(f"{samples}: {self.source.name} reads speech; give --samples a .wav file of some seconds")
        sound = sound[: min(SOUND_SECONDS * hearing.rate, hearing.most or len(sound))][None]
        if sound.shape[1] < SHORTEST_SOUND * hearing.rate:
            raise SourceError(f"{origin}: {sound.shape[1] / hearing.rate:.3f} s of sound; give some seconds")
        kind = "random" if samples is None else "sample"
        if not _is_decoder(self.source):
            return Inputs(({SOUND: sound},), kind, origin)
        return Inputs(
            ({"input_ids": transcript(self.source, sound, PAIR_TOKENS), f"{ENCODER}.{SOUND}": sound},), kind, origin
        )

    def takes(self) -> str:
        """What the model takes, and how the user can give it."""
        text = "a .txt file or " if self.reads_text() else ""
        pictures = "a directory of pictures or " if self.picture() is not None else ""
        declared = ", ".join(map(str, self.declared))
        return f"{declared}; give --samples {text or pictures}an .npz with arrays of these names"

    def refusal(self, samples: Path | str, problem: str) -> SourceError:
        return SourceError(f"{samples}: {problem}; {self.source.name} takes {self.takes()}")

    def tokenizer(self) -> Path | None:
        return next((path for path in self.source.assets if path.name == "tokenizer.json"), None)

    def reads_text(self) -> bool:
        texts = [i.name in TEXT_INPUTS and i.dtype.startswith("int") and len(i.dims or ()) == 2 for i in self.declared]
        named = any(i.name == "input_ids" for i in self.declared)
        return self.hearing is None and named and all(texts) and self.tokenizer() is not None

    def text(self, samples: Path | None) -> Inputs:
        """A decoder's text, or an encoder's sentences in batches of 8."""
        file, where = self.tokenizer(), str(samples or "the shipped prose")
        known = {i.name: i for i in self.declared}
        if not self.reads_text() or file is None:
            missing = "input_ids" in known and file is None
            why = "there is no tokenizer.json to read it with" if missing else f"{self.source.name} takes no text"
            raise self.refusal(where, f"a text, but {why}")
        if _is_decoder(self.source):
            ids = read.tokens(file, samples, TEXT_TOKENS)
            return Inputs((_of_decoder(self.source, ids),), "text", where)
        rows = read.sentences(file, samples, self.sentence_tokens())
        batches = self.sentence_batches(rows)
        if not batches:
            raise self.refusal(where, f"{len(rows)} sentences are less than one batch")
        return Inputs(tuple(batches), "sample", where)

    def calibration_text(self, samples: Path | None, count: int, length: int) -> list[Batch]:
        """Real text for a model that reads such."""
        file = self.tokenizer()
        assert file is not None
        if _is_decoder(self.source):
            windows = read.calibration_windows(file, samples, count, min(length, CALIBRATION_TOKENS), TEXT_TOKENS)
            return [_of_decoder(self.source, window["input_ids"]) for window in windows]
        rows = read.calibration_sentences(file, samples, count * SENTENCES_A_BATCH, self.sentence_tokens())
        return self.sentence_batches(rows)

    def sentence_tokens(self) -> int:
        """Of one sentence, at most."""
        return min((self._text_dims()[1] or SENTENCE_TOKENS), SENTENCE_TOKENS)

    def sentence_batches(self, rows: Sequence[Sequence[int]]) -> list[Batch]:
        """An encoder's sentences, as many at a time as it takes; a rest that is no whole batch is left out."""
        count, length = self._text_dims()
        step = count or SENTENCES_A_BATCH
        groups = [rows[i : i + step] for i in range(0, len(rows), step)]
        batches = [
            read.padded(group, length or max(len(row) for row in group))
            for group in groups
            if count in (None, len(group))
        ]
        return [{i.name: b[i.name].astype(i.dtype) for i in self.declared} for b in batches]

    def _text_dims(self) -> tuple[int | None, ...]:
        return next(i.dims for i in self.declared if i.name == "input_ids") or (None, None)

    def picture(self) -> _Picture | None:
        """The model's input, where it is one and takes pictures."""
        if len(self.declared) != 1 or self.declared[0].dims is None or len(self.declared[0].dims) != 4:
            return None
        batch, channels, height, width = self.declared[0].dims
        if channels not in COLOURS or not height or not width or not self.declared[0].dtype.startswith("float"):
            return None
        return _Picture(self.declared[0], batch or 1, channels, (height, width))

    def pictures(self, picture: _Picture, folder: Path, most: int) -> Inputs:
        """Of a picture or a directory, as many as are whole batches."""
        files = read.picture_files(folder, most)
        pixels = read.pictures(files, picture.channels, picture.size, _directory(self.source)).astype(
            picture.input.dtype
        )
        whole = pixels[: max(picture.batch, len(pixels) // picture.batch * picture.batch)]
        return Inputs(tuple(self.split(folder, {picture.input.name: whole})), "sample", str(folder))

    def arrays(self, samples: Path) -> list[Batch]:
        """The samples of an .npz. Raises SourceError for other names, types or shapes than the model's."""
        given = read.arrays(samples)
        if LABELS not in {i.name for i in self.declared}:
            given.pop(LABELS, None)  # for `verify --labels` with the same file
        if problem := read.misfit(given, self.declared):
            raise self.refusal(samples, problem)
        ids = given.get("input_ids")
        count = vocabulary_size(self.source.module) if isinstance(self.source, ModuleSource) else None
        if ids is not None and ids.size and count is not None and (ids.min() < 0 or ids.max() >= count):
            known = f"{self.source.name} has tokens 0 to {count - 1}"
            raise SourceError(f"{samples}: input_ids are {ids.min()} to {ids.max()}, {known}")
        if ids is None or not _is_decoder(self.source):
            return self.split(samples, given)
        if ids.shape[0] != 1 or ids.shape[1] < 2:
            raise self.refusal(samples, f"input_ids is {list(ids.shape)}, not one text [1, T]")
        return [_of_decoder(self.source, ids[:, :TEXT_TOKENS])]

    def split(self, samples: Path, given: Mapping[str, np.ndarray]) -> list[Batch]:
        """Batches of as many samples as the model takes at once, of one where it takes any number."""
        steps = {i.name: (i.dims[0] if i.dims else None) or 1 for i in self.declared if i.dims != ()}
        counts = {name: len(given[name]) / step for name, step in steps.items()}
        count = next(iter(counts.values()), 1)
        if len(set(counts.values())) > 1 or count < 1 or count != int(count):
            sizes = ", ".join(f"{len(given[name])} of {name}" for name in steps)
            raise self.refusal(samples, f"holds {sizes}, which are no whole batches")
        return [
            {n: given[n][i * steps[n] : (i + 1) * steps[n]] if n in steps else given[n] for n in given}
            for i in range(int(count))
        ]


@dataclass(frozen=True)
class _Picture:
    """An input [batch, channels, *size] that takes pictures."""

    input: ModelInput
    batch: int
    channels: int
    size: tuple[int, int]


def _is_decoder(source: Source) -> TypeGuard[ModuleSource]:
    return isinstance(source, ModuleSource) and source.task in DECODERS


def _of_decoder(source: ModuleSource, ids: np.ndarray) -> Batch:
    """A text int64 [1, T] as a decoder's input; one with an encoder gets half of it as its source, the rest as its answer."""
    if source.task not in CROSS_TASKS:
        return {"input_ids": ids}
    half = min(max(1, ids.shape[1] // 2), PAIR_TOKENS)
    given, answer = ids[:, :half], ids[:, half : 2 * half]
    start = getattr(source.config, "decoder_start_token_id", None) or 0
    mask = np.ones_like(given)
    decoded = np.concatenate([np.full((1, 1), start, ids.dtype), answer], axis=1)
    return {"input_ids": decoded, f"{ENCODER}.input_ids": given, f"{ENCODER}.attention_mask": mask}


def _directory(source: Source) -> Path | None:
    """Where preprocessor_config.json may lie."""
    if isinstance(source, ExportedSource):
        return None
    return source.path.parent if isinstance(source, OnnxSource) else source.directory


def vocabulary_size(module: Any) -> int | None:
    """Rows of a transformers model's token table; None for other modules."""
    inner: Any = module.model if isinstance(module, TextEncoder) else module
    try:
        return getattr(inner.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # no transformers model; one without embeddings, as a ResNet
        return None


def _try(source: Source, inputs: Inputs) -> None:
    """One batch through the model, before anything takes long; a decoder takes all ids that it has."""
    if isinstance(source, OnnxSource) or _is_decoder(source):
        return
    module: Any = source.module.float() if isinstance(source, ModuleSource) else source.module
    try:
        with torch.no_grad():
            module(**{name: torch.from_numpy(array) for name, array in inputs.batches[0].items()})
    except Exception as error:  # a model fails on wrong input in any way
        words = one_line(error)
        raise SourceError(f"{inputs.origin}: {source.name} does not run on it ({words})") from error


def _cropped(images: np.ndarray, share: float, bottom: bool, right: bool) -> np.ndarray:
    """A corner of float32 [B, C, H, W], ``share`` of each side, blown up again to the full size."""
    height, width = images.shape[2:]
    rows, columns = ((np.arange(size) * share).astype(int) for size in (height, width))
    rows = rows + (height - 1 - rows[-1]) * bottom
    columns = columns + (width - 1 - columns[-1]) * right
    return np.ascontiguousarray(images[:, :, rows][:, :, :, columns])


VARIANTS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda images: np.ascontiguousarray(images[..., ::-1]),
    *(partial(_cropped, share=s, bottom=b, right=r) for s in (0.8, 0.6) for b in (False, True) for r in (False, True)),
)
