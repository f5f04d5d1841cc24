"""From what the user has to a bundle: the one place where frontend, passes, bundle and runtime meet."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Bundle, BundleWriter, Manifest, write_graph
from edgekit.errors import BundleError, CheckFailed, SourceError, UnsupportedError, UsageError
from edgekit.frontend.allocator import give_back_memory
from edgekit.lowbit.library import ABIS, SHIPPED, built_library
from edgekit.metrics import judge, tensor_distance
from edgekit.recipe import Recipe
from edgekit.spec.names import OPERATORS, VECTORS
from edgekit.spec.progress import Progress
from edgekit.spec.records import DeadUnits, DecoderInfo, Layer, TensorInfo, VectorInfo
from edgekit.strict import build as from_dict
from edgekit.strict import read_json, suggest

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from edgekit.frontend.source import Source
    from edgekit.lowbit.formats import PackedTensor
    from edgekit.lowbit.surviving import Kept

MOST_SAMPLES = 16
PACKAGES = ("edgekit", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "numpy")


def export(
    source: str | Path,
    recipe: str | Path | Recipe,
    output: str | Path,
    *,
    samples: str | Path | None = None,
    task: str | None = None,
    force: bool = False,
    allow_pickle: bool = False,
    abis: Sequence[str] = SHIPPED,
    progress: Progress = lambda what, share: None,
) -> Bundle:
    """Exports a model as a bundle and proves that it loads and computes what the compressed PyTorch model does.

    ``source`` is a Hugging Face directory or hub id, a .gguf, .pt2 or .onnx file, or ``package.module:factory``;
    ``recipe`` a shipped recipe's name, a YAML path or a Recipe; ``output`` the bundle directory to make; ``samples`` the
    user's own real input (a text, a directory of images, an .npz). ``abis`` are the systems it is for
    (edgekit.lowbit.library.ABIS): a bundle with ternary, int8-channel or sparse layers carries the native operator library
    for each, and layers are sparse only where that is faster on all. Nothing is left at ``output`` on failure.

    Raises SourceError, RecipeError, UnsupportedError for what cannot be exported; CheckFailed when the written model
    does not compute what it should or the disk is full; UsageError when ``output`` exists and ``force`` is not set, or
    for an unknown ABI; RuntimeUnavailable when an operator library is not there.
    """
    _check_abis(abis)
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    source, samples = str(source), None if samples is None else Path(samples)
    with BundleWriter(Path(output), force=force) as writer:
        from edgekit.frontend.source import load

        progress("load the model", 0.0)
        found = load(source, allow_pickle=allow_pickle, task=task)
        progress("trace the graph", 0.0)
        model = _graph(found, chosen, samples, abis, progress)
        give_back_memory()  # the trace is large and full of cycles
        write_graph(model, writer.directory, progress)
        for asset in found.assets:
            shutil.copyfile(asset, writer.directory / asset.name)
        described = _manifest(model, found, chosen, source)
        if described.uses_operators:
            _add_libraries(abis, writer.directory)
        draft = writer.draft(described)
        kept: dict[str, Kept] = model.meta.get("edgekit.kept", {})
        del model  # it refers to the weights
        manifest = _golden(found, draft, samples, kept, progress)
        del found
        give_back_memory()
        progress("check in ONNX Runtime", 0.0)
        _check(writer.draft(manifest), chosen)
        progress("check in ONNX Runtime", 1.0)
        return writer.commit(manifest)


def _check_abis(abis: Sequence[str]) -> None:
    for abi in abis:
        if abi not in ABIS:
            raise UsageError(f"abi '{abi}': not one of {', '.join(ABIS)}{suggest(abi, ABIS)}")


def _add_libraries(abis: Sequence[str], directory: Path) -> None:
    """The operator library for each ABI, in ``ops/<abi>/``."""
    for abi in abis:
        library = built_library(abi)
        (directory / OPERATORS / abi).mkdir(parents=True)
        shutil.copyfile(library, directory / OPERATORS / abi / library.name)


def _graph(found: Source, recipe: Recipe, samples: Path | None, abis: Sequence[str], progress: Progress) -> ir.Model:
    """The final graph, weights still unread."""
    from edgekit.frontend import decoder
    from edgekit.passes import pipeline

    if found.task == "text-generation" and found.module is not None:
        if recipe.static is not None:
            raise UnsupportedError(
                f"recipe {recipe.name}: calibrated ranges are for convolutional nets; use int8 for {found.architecture}"
            )
        from edgekit.frontend.streamed import widen

        model = decoder.build(widen(found.module))
    else:
        from edgekit.frontend import generic

        model = generic.build(found, samples)
    if recipe.static is not None:
        from edgekit.frontend.generic import calibration
        from edgekit.passes.dead_units.removal import RemoveDeadUnits
        from edgekit.passes.static_quantize import quantize_static

        model = RemoveDeadUnits()(model).model
        progress("calibrate", 0.0)
        return quantize_static(model, recipe.static, calibration(found, samples, recipe.static.samples))
    progress("rewrite the graph", 0.0)
    for step in pipeline(recipe, abis):
        model = step(model).model
    return model


def _manifest(model: ir.Model, found: Source, recipe: Recipe, source: str) -> Manifest:
    facts = {key: json.loads(text) for key, text in model.metadata_props.items() if key.startswith("edgekit.")}
    layers = tuple(from_dict(Layer, layer, "edgekit.layers", BundleError) for layer in facts.get("edgekit.layers", []))
    dead = tuple(
        from_dict(DeadUnits, d, "edgekit.dead_units", BundleError) for d in facts.get("edgekit.dead_units", [])
    )
    return Manifest(
        schema_version=1,
        task=found.task,
        name=found.name,
        architecture=found.architecture,
        source=source,
        recipe=recipe.to_dict(),
        inputs=tuple(_tensor_info(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_info(value) for value in model.graph.outputs),
        nodes=sum(1 for _ in model.graph),
        layers=layers,
        dead_units=dead,
        decoder=_decoder_info(facts["edgekit.decoder"], found) if "edgekit.decoder" in facts else None,
        taps=facts.get("edgekit.taps", {}),
        versions=_versions(),
    )


def _tensor_info(value: ir.Value) -> TensorInfo:
    dims = tuple(
        d if isinstance(d, int) else str(d.value or f"{value.name}_{i}") for i, d in enumerate(value.shape or ())
    )
    return TensorInfo(str(value.name), value.dtype.name.lower() if value.dtype else "float", dims)


def _decoder_info(facts: dict[str, Any], found: Source) -> DecoderInfo:
    settings: dict[str, Any] = {}
    path = next((a for a in found.assets if a.name == "generation_config.json"), None)
    if path is not None:
        settings = read_json(path, SourceError, "fetch the file again")
    text = found.config.get_text_config() if found.config is not None else None
    bos, eos = (settings.get(key, getattr(text, key, None)) for key in ("bos_token_id", "eos_token_id"))
    ends = tuple(eos) if isinstance(eos, list | tuple) else (() if eos is None else (eos,))
    values = {**facts, "bos_token_id": bos, "eos_token_ids": ends}
    info: DecoderInfo = from_dict(DecoderInfo, values, "config.json and generation_config.json", SourceError)
    return info


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def packed_weights(bundle: Bundle) -> tuple[dict[str, PackedTensor], dict[str, int]]:
    """The bundle's low-bit layers by name, mapped from its file, and the activation blocks they use."""
    from edgekit.lowbit.formats import PackedTensor, block_count

    packed, blocks = {}, {}
    for layer in bundle.manifest.layers:
        if not layer.tensor or not layer.rows or layer.format == "fp32":
            continue  # nothing was rounded
        data, scales = bundle.tensor(layer.tensor), bundle.tensor(layer.scales) if layer.scales else None
        if layer.format in ("int8", "int8-channel", "int4"):  # an embedding's bytes are listed as a matrix
            data = data.reshape(len(data), block_count(layer.shape[1], layer.block_size), -1)
        whole = PackedTensor(layer.format, (len(data), layer.shape[1]), layer.block_size, data, scales)
        packed[layer.name] = whole.rows(layer.rows[0], layer.rows[1])
        blocks[layer.name] = layer.activation_block_size
    return packed, blocks


def _golden(found: Source, bundle: Bundle, samples: Path | None, kept: dict[str, Kept], progress: Progress) -> Manifest:
    """Writes the golden vectors into the draft and returns its manifest with them listed."""
    from dataclasses import replace

    if bundle.manifest.decoder is not None:
        file, evaluation = _golden_text(found, bundle, samples, kept, progress)
        return replace(bundle.manifest, vectors=(file,), evaluation=evaluation, files=())
    vectors = _golden_samples(found, bundle, samples, kept, progress)
    return replace(bundle.manifest, vectors=vectors, files=())


def _golden_samples(
    found: Source, bundle: Bundle, samples: Path | None, kept: dict[str, Kept], progress: Progress
) -> tuple[VectorInfo, ...]:
    """One vector for each batch of real input. Where there are no modules to compress (.onnx and .pt2 files, calibrated
    quantization), the reference is the written graph run node by node without ONNX Runtime's optimizations."""
    from safetensors.numpy import save_file

    from edgekit.frontend.compressed import compressed, native_activations
    from edgekit.frontend.generic import batches, kind
    from edgekit.frontend.golden import module_outputs
    from edgekit.runtime.session import Session

    names = [output.name for output in bundle.manifest.outputs]
    inputs = batches(found, samples)[:MOST_SAMPLES]
    progress("golden vectors: original model", 0.0)
    if found.module is None:
        originals = [_run_original(found, feeds) for feeds in inputs]
    else:
        with native_activations(found.module):
            originals = [module_outputs(found.module, feeds, names) for feeds in inputs]
    progress("golden vectors: compressed model", 0.5)
    if found.module is None or found.kind == "pt2" or bundle.manifest.recipe["static"]:
        session = Session(bundle, 1, optimize=False)
        references = [session.run(feeds) for feeds in inputs]
    else:
        weights, blocks = packed_weights(bundle)
        with native_activations(found.module), compressed(found.module, weights, blocks, kept):
            references = [module_outputs(found.module, feeds, names) for feeds in inputs]
    (bundle.directory / VECTORS).mkdir(exist_ok=True)
    listed = []
    for index, (feeds, original, reference) in enumerate(zip(inputs, originals, references, strict=True)):
        arrays = {f"input.{n}": a for n, a in feeds.items()}
        arrays |= {f"original.{n}": a for n, a in original.items()} | {
            f"compressed.{n}": a for n, a in reference.items()
        }
        file = f"{VECTORS}/sample-{index:02}.safetensors"
        save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, bundle.directory / file)
        listed.append(VectorInfo(file, kind(found, samples)))
    return tuple(listed)


def _run_original(found: Source, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An .onnx file as it was given, in ONNX Runtime."""
    from edgekit.runtime.session import onnxruntime

    session = onnxruntime().InferenceSession(str(found.onnx_path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def _golden_text(
    found: Source, bundle: Bundle, samples: Path | None, kept: dict[str, Kept], progress: Progress
) -> tuple[VectorInfo, dict[str, float]]:
    from safetensors.numpy import save_file

    from edgekit.frontend.compressed import compressed, native_activations
    from edgekit.frontend.golden import DECODE_STEPS, TAP_ROWS, Taps, perplexity, text_vector
    from edgekit.frontend.samples import text_ids

    decoder = bundle.manifest.decoder
    assert decoder is not None and found.module is not None
    ids, kind = text_ids(found.assets, samples, decoder.max_length, decoder.vocab_size)
    with native_activations(found.module), _layer_by_layer(found.module, "golden vectors: original model", progress):
        original = text_vector(found.module, ids)
    give_back_memory()
    rows = np.unique(np.linspace(0, max(0, ids.shape[1] - DECODE_STEPS - 1), TAP_ROWS).astype(np.int32))
    weights, blocks = packed_weights(bundle)
    with (
        native_activations(found.module),
        compressed(found.module, weights, blocks, kept),
        _layer_by_layer(found.module, "golden vectors: compressed model", progress),
        Taps(found.module, list(bundle.manifest.taps), rows) as taps,
    ):
        reference = text_vector(found.module, ids)
    arrays = {"input.input_ids": ids, "tap_rows": rows, **taps.outputs}
    for who, found_arrays in (("original", original), ("compressed", reference)):
        arrays.update({f"{who}.{name}": array for name, array in found_arrays.items()})
    (bundle.directory / VECTORS).mkdir(exist_ok=True)
    save_file(arrays, bundle.directory / VECTORS / "text.safetensors")
    evaluation = {
        "original_perplexity": perplexity(original["nll"]),
        "compressed_perplexity": perplexity(reference["nll"]),
    }
    return VectorInfo(f"{VECTORS}/text.safetensors", kind), evaluation


@contextmanager
def _layer_by_layer(module: nn.Module, what: str, progress: Progress) -> Iterator[None]:
    """Reports each decoder layer that has run: a large model takes half a minute for a text."""
    from edgekit.frontend.decoder import decoder_layers

    progress(what, 0.0)
    layers = decoder_layers(module)
    shares = iter((i + 1) / len(layers) for i in range(len(layers)))
    hooks = [layer.register_forward_hook(lambda *_: progress(what, next(shares, 1.0))) for layer in layers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check(bundle: Bundle, recipe: Recipe) -> None:
    """Loads the written model in ONNX Runtime and replays one golden vector; CheckFailed when a parity limit is missed."""
    from edgekit.frontend.golden import DECODE_STEPS
    from edgekit.runtime.replay import open_decoder, replay_sample, replay_text
    from edgekit.runtime.session import Session

    _, vector = bundle.vectors()[0]
    if bundle.manifest.decoder is not None:
        ids = vector["input.input_ids"]
        # Float weights run from the file as it is mapped; ONNX Runtime's second copy would double the peak.
        low_bit = any(layer.format not in ("fp32", "fp16") for layer in bundle.manifest.layers)
        decoder = open_decoder(bundle, 2, ids.shape[1], prepack=low_bit)
        found = {"logits": replay_text(decoder, ids, DECODE_STEPS)["logits"]}
    else:
        found = replay_sample(Session(bundle, 2), vector)
    for name, array in found.items():
        reference = vector[f"compressed.{name}"]
        failed = [c for c in judge(tensor_distance(reference, array), recipe.parity) if not c.passed]
        if failed:
            check = failed[0]
            raise CheckFailed(
                f"{name}: the written model differs from the compressed PyTorch model: {check.metric} {check.value:.4g}, "
                f"limit {check.limit:.4g} (recipe {recipe.name}); nothing was kept, please report it with the model's config.json"
            )
