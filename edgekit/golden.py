"""Golden vectors: what the original and the compressed PyTorch model answer on real input, written beside the model.

With them a machine without PyTorch can tell whether it computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from edgekit.bundle import Bundle, Manifest
from edgekit.errors import SourceError, one_line
from edgekit.frontend.allocator import give_back_memory
from edgekit.frontend.compressed import compressed, native_activations, replaceable
from edgekit.frontend.decoder import decoder_layers
from edgekit.frontend.decoder.cross import Conditioned, arguments
from edgekit.frontend.inputs import MOST_VECTORS, Inputs
from edgekit.frontend.pictures import placed
from edgekit.frontend.source import ModuleSource, OnnxSource, Source
from edgekit.lowbit.formats import PackedTensor, block_count
from edgekit.metrics import perplexity
from edgekit.runtime.session import Session, onnxruntime
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import BEFORE, ENCODER, FEATURES, SOUND, VECTORS
from edgekit.spec.progress import Progress
from edgekit.spec.records import Surviving, VectorInfo

TOP = 64
"""Logits kept for every position: enough for the Kullback-Leibler divergence (the rest counts as one class)."""
DECODE_STEPS = 8
"""Tokens at the end of the text that parity feeds one by one, through the cache."""
ROWS = DECODE_STEPS + 1
PICTURE_TOKENS = 96
"""Of a text behind a picture."""
TAP_ROWS = 4
CHUNK = 32

Arrays = dict[str, np.ndarray]


def write_vectors(
    source: Source, bundle: Bundle, inputs: Inputs, surviving: Mapping[str, Surviving], progress: Progress
) -> Manifest:
    """Writes the golden vectors into a draft of a bundle and returns its manifest with them listed.

    ``surviving`` says what is left of layers whose dead units were removed.
    """
    (bundle.directory / VECTORS).mkdir(exist_ok=True)
    if bundle.manifest.decoder is None:
        vectors = _samples(source, bundle, inputs, surviving, progress)
        return replace(bundle.manifest, vectors=vectors, files=())
    assert isinstance(source, ModuleSource)
    vectors, evaluation = _texts(source, bundle, inputs, surviving, progress)
    return replace(bundle.manifest, vectors=vectors, evaluation=evaluation, files=())


def _samples(
    source: Source, bundle: Bundle, inputs: Inputs, surviving: Mapping[str, Surviving], progress: Progress
) -> tuple[VectorInfo, ...]:
    """One vector for each batch of input."""
    batches = inputs.batches[:MOST_VECTORS]
    progress("golden vectors: original model", 0.0)
    originals = _originals(source, bundle, inputs.origin, batches)
    progress("golden vectors: compressed model", 0.5)
    references = _references(source, bundle, batches, surviving)
    listed = []
    for index, (feeds, original, reference) in enumerate(zip(batches, originals, references, strict=True)):
        parts = {"input": feeds, "original": original, "compressed": reference}
        vector = {f"{part}.{n}": np.ascontiguousarray(a) for part, arrays in parts.items() for n, a in arrays.items()}
        file = f"{VECTORS}/sample-{index:02}.safetensors"
        save_file(vector, bundle.directory / file)
        listed.append(VectorInfo(file, inputs.kind))
    return tuple(listed)


def _originals(source: Source, bundle: Bundle, origin: str, batches: Sequence[Arrays]) -> list[Arrays]:
    """What the model answers as it was given; an .onnx file in ONNX Runtime. Raises SourceError when that refuses."""
    if not isinstance(source, OnnxSource):
        with native_activations(source.module):
            return [module_outputs(source.module, feeds, _outputs(bundle)) for feeds in batches]
    try:
        session = onnxruntime().InferenceSession(str(source.path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(None, feeds), strict=True)) for feeds in batches]
    except Exception as error:  # ONNX Runtime raises its own kinds
        words = one_line(error)
        raise SourceError(f"{source.path}: ONNX Runtime does not run it on {origin} ({words})") from error


def _references(
    source: Source, bundle: Bundle, batches: Sequence[Arrays], surviving: Mapping[str, Surviving]
) -> list[Arrays]:
    """What the compressed model answers.

    Where no module's layers can be replaced (.onnx and .pt2 files, calibrated quantization, weights of another name than ``weight``) that is the written graph,
    run node by node without ONNX Runtime's optimizations.
    """
    weights, blocks = packed_weights(bundle)
    static = bundle.manifest.recipe["static"]
    if static or not isinstance(source, ModuleSource) or not replaceable(source.module, weights):
        session = Session(bundle, 1, optimize=False)
        return [session.run(feeds) for feeds in batches]
    with native_activations(source.module), compressed(source.module, weights, blocks, surviving):
        return [module_outputs(source.module, feeds, _outputs(bundle)) for feeds in batches]


def _outputs(bundle: Bundle) -> list[str]:
    """What is kept of the answers: of speech, whose keys and values are megabytes a layer, only what they are made of. The
    decoder's vector, which goes through both graphs, judges them."""
    names = [output.name for output in bundle.manifest.outputs]
    speech = any(given.name == SOUND for given in bundle.manifest.inputs)
    return [name for name in names if not (speech and name.startswith("cross."))]


def _texts(
    source: ModuleSource, bundle: Bundle, inputs: Inputs, surviving: Mapping[str, Surviving], progress: Progress
) -> tuple[tuple[VectorInfo, ...], dict[str, float]]:
    """The vectors of a decoder, one behind a picture where it takes such, and both models' perplexity on the first."""
    decoder, module = bundle.manifest.decoder, source.module
    assert decoder is not None
    ids = np.ascontiguousarray(inputs.batches[0]["input_ids"][:, : decoder.max_length])
    given = {name: array for name, array in inputs.batches[0].items() if name.startswith(f"{ENCODER}.")}
    model = Conditioned(module, arguments(module, _tensors(given))) if given else module
    pictured = None if bundle.manifest.pictures is None else _Pictured.of(bundle, inputs)
    behind: Arrays = {}
    with native_activations(module), _layer_by_layer(module, "golden vectors: original model", progress):
        original = text_vector(model, ids)
        if pictured is not None:
            behind |= pictured.answers(module, "original")
    give_back_memory()
    rows = np.unique(np.linspace(0, max(0, ids.shape[1] - DECODE_STEPS - 1), TAP_ROWS).astype(np.int32))
    weights, blocks = packed_weights(bundle)
    if decoder.encoder is not None and bundle.encoder is not None:
        crossed, crossed_blocks = packed_weights(bundle.encoder)
        weights |= {name.removeprefix("model."): packed for name, packed in crossed.items()}
        blocks |= {name.removeprefix("model."): block for name, block in crossed_blocks.items()}
    with (
        native_activations(module),
        compressed(module, weights, blocks, surviving),
        _layer_by_layer(module, "golden vectors: compressed model", progress),
    ):
        if pictured is not None:
            behind |= pictured.answers(module, "compressed")
        with Taps(module, list(bundle.manifest.taps), rows) as taps:
            reference = text_vector(model, ids)
    arrays = {"input.input_ids": ids, **given, "tap_rows": rows, **taps.outputs}
    for who, answers in (("original", original), ("compressed", reference)):
        arrays.update({f"{who}.{name}": array for name, array in answers.items()})
    save_file(arrays, bundle.directory / VECTORS / "text.safetensors")
    evaluation = {
        "original_perplexity": perplexity(original["nll"]),
        "compressed_perplexity": perplexity(reference["nll"]),
    }
    vector = VectorInfo(f"{VECTORS}/text.safetensors", inputs.kind)
    return (vector,) if pictured is None else (vector, pictured.write(bundle.directory, behind)), evaluation


@dataclass(frozen=True)
class _Pictured:
    """A text behind a picture, whose features are those of the encoder's first golden vector."""

    ids: np.ndarray  # int64 [1, before + T]
    before: int
    seen: Arrays  # that vector
    kind: str

    @staticmethod
    def of(bundle: Bundle, inputs: Inputs) -> _Pictured:
        """Of a draft whose encoder is finished."""
        decoder, pictures, encoder = bundle.manifest.decoder, bundle.manifest.pictures, bundle.encoder
        assert decoder is not None and pictures is not None and encoder is not None
        info, seen = encoder.vectors()[0]
        before = np.array([Tokenizer(bundle).encode(pictures.prompt(0, 0))], np.int64)
        room = decoder.max_length - before.shape[1]
        if room < 2:
            raise SourceError(
                f"{bundle.manifest.name}: a picture takes {before.shape[1]} tokens, the context is {decoder.max_length}"
            )
        ids = inputs.batches[0]["input_ids"][:, : min(PICTURE_TOKENS, room)]
        return _Pictured(
            np.concatenate([before, ids], axis=1),
            before.shape[1],
            seen,
            inputs.kind if info.kind == "sample" else info.kind,
        )

    def answers(self, module: nn.Module, who: str) -> Arrays:
        """What a language model says about the text, with the features that the same model's encoder gave."""
        with placed(module, torch.from_numpy(self.seen[f"{who}.{FEATURES}"]).flatten(0, 1)):
            answers = text_vector(module, self.ids)
        count = self.ids.shape[1] - self.before
        kept = {name: array[-(count - 1 if name == "nll" else count) :] for name, array in answers.items()}
        return {f"{who}.{name}": array for name, array in kept.items()}

    def write(self, directory: Path, answers: Arrays) -> VectorInfo:
        """The golden vector's file in a bundle's directory."""
        before, ids = np.split(self.ids, [self.before], axis=1)
        arrays = {
            BEFORE: before,
            "input.input_ids": ids,
            f"{ENCODER}.pixel_values": self.seen["input.pixel_values"],
            **answers,
        }
        file = f"{VECTORS}/picture.safetensors"
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / file)
        return VectorInfo(file, self.kind)


@contextmanager
def _layer_by_layer(module: nn.Module, what: str, progress: Progress) -> Iterator[None]:
    """Reports each decoder layer that has run: a large model takes half a minute for a text."""
    progress(what, 0.0)
    layers = decoder_layers(module)
    shares = iter((i + 1) / len(layers) for i in range(len(layers)))
    hooks = [layer.register_forward_hook(lambda *_: progress(what, next(shares, 1.0))) for layer in layers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def packed_weights(bundle: Bundle) -> tuple[dict[str, PackedTensor], dict[str, int]]:
    """The bundle's low-bit layers by name, mapped from its file, and the activation blocks they use."""
    packed, blocks = {}, {}
    for layer in bundle.manifest.layers:
        if not layer.tensor or not layer.rows or layer.format == "fp32":
            continue  # nothing was rounded
        data, scales = bundle.tensor(layer.tensor), bundle.tensor(layer.scales) if layer.scales else None
        if FORMATS[layer.format].layout == "blocks":  # an embedding's bytes are listed as a matrix, experts' one by one
            blocks_a_row = block_count(layer.shape[1], layer.block_size)
            data = data.reshape(-1, blocks_a_row, layer.block_size * FORMATS[layer.format].bits // 8)
            if scales is not None and (FORMATS[layer.format].scales == "block" or scales.ndim == 3):
                scales = scales.reshape(-1, blocks_a_row)
        whole = PackedTensor(layer.format, (len(data), layer.shape[1]), layer.block_size, data, scales)
        packed[layer.name] = whole.rows(layer.rows[0], layer.rows[1])
        blocks[layer.name] = layer.activation_block_size
    return packed, blocks


def text_vector(model: nn.Module, ids: np.ndarray) -> Arrays:
    """What a causal language model says about ``ids`` int64 [1, T].

    Returns ``nll`` float32 [T-1] (nats of each next token), ``logsumexp`` float32 [T], ``top_values`` float32 and
    ``top_indices`` int32 [T, 64] in descending order, and ``logits`` float32 [9, V] of the last positions.
    """
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        parts = [_summary(logits, tokens[0, start + 1 :]) for start, logits in _logits(model, tokens)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    whole["logits"] = whole["logits"][-ROWS:]
    return {name: tensor.contiguous().numpy().copy() for name, tensor in whole.items()}


def _logits(model: Any, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first position, logits [n, V]) of a text, piece by piece: a whole text's logits can take more than the model.

    The body runs once over the whole text; the head, and what the model does after it, run on pieces of its result.
    """
    body = model.get_decoder() if hasattr(model, "get_decoder") else None  # OPT's is inside its base model
    if not isinstance(body, nn.Module) or body is model:
        body = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if not isinstance(body, nn.Module) or body is model:
        yield 0, model(input_ids=tokens, use_cache=False).logits[0]
        return
    result = body(input_ids=tokens, use_cache=False, return_dict=True)
    hidden = result.last_hidden_state
    for start in range(0, tokens.shape[1], CHUNK):
        piece = type(result)(last_hidden_state=hidden[:, start : start + CHUNK])
        body.forward = lambda *args, piece=piece, **kwargs: piece
        try:
            yield start, model(input_ids=tokens[:, start : start + CHUNK], use_cache=False).logits[0]
        finally:
            del body.forward


def _summary(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What is kept of logits [n, V]; ``targets`` are the tokens that follow each of them, as far as there are any."""
    logits = logits.float()
    total, top = logits.logsumexp(-1), logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    known = min(len(logits), len(targets))
    nll = total[:known] - logits[:known].gather(1, targets[:known, None])[:, 0]
    rows = logits[-ROWS:].clone()
    return {"nll": nll, "logsumexp": total, "top_values": top.values, "top_indices": top.indices.int(), "logits": rows}


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Taps:
    """Collects outputs of named modules during one forward pass; float32, at ``rows`` of the second axis if given."""

    def __init__(self, model: nn.Module, names: Sequence[str], rows: np.ndarray | None = None) -> None:
        modules = dict(model.named_modules())
        self.rows = None if rows is None else torch.from_numpy(rows.astype(np.int64))
        self.outputs: Arrays = {}
        self._hooks = [modules[n].register_forward_hook(self._hook(n)) for n in names if n in modules]

    def _hook(self, name: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple | list) else output
            if isinstance(tensor, Tensor):
                kept = tensor if self.rows is None else tensor[0, self.rows]
                self.outputs[f"tap.{name}"] = kept.detach().float().contiguous().numpy().copy()

        return hook

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()


def module_outputs(model: nn.Module, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Arrays:
    """Outputs of any module by name: a bare tensor is the first, a tuple follows the order, a mapping its keys."""
    with torch.no_grad():
        out = model(**_tensors(inputs))
    if isinstance(out, Tensor):
        out = (out,)
    pairs = ((n, out[n]) for n in names) if isinstance(out, Mapping) else zip(names, out, strict=False)
    return {name: value.detach().float().contiguous().numpy().copy() for name, value in pairs}
