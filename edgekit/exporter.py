"""From what the user has to a bundle: the one place where frontend, passes, bundle and runtime meet."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Bundle, BundleWriter, Manifest, write_graph
from edgekit.bundle.manifest import schema_version
from edgekit.errors import CheckFailed, SourceError, UnsupportedError, UsageError
from edgekit.frontend.allocator import give_back_memory
from edgekit.frontend.answers import answers, settings_of
from edgekit.frontend.source import ModuleSource, Source
from edgekit.lowbit.library import ABIS, SHIPPED, built_library
from edgekit.metrics import judge, tensor_distance
from edgekit.recipe import Recipe
from edgekit.spec.facts import facts_of
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import DECODERS, ENCODED, ENCODER, OPERATORS, PICTURES_TO_TEXT
from edgekit.spec.progress import Progress
from edgekit.spec.records import DecoderInfo, TensorInfo
from edgekit.strict import build as from_dict
from edgekit.strict import suggest

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.frontend.inputs import Inputs

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
    ``recipe`` a shipped recipe's name, a YAML path or a Recipe; ``output`` the bundle directory to make; ``samples``
    the user's own real input (a text, a directory of images, an .npz). ``abis`` are the systems it is for
    (edgekit.lowbit.library.ABIS): a bundle with ternary, int8-channel or sparse layers carries the native operator
    library for each, and layers are sparse only where that is faster on all. Nothing is left at ``output`` on failure.

    Raises SourceError, RecipeError, UnsupportedError for what cannot be exported; CheckFailed when the written model
    does not compute what it should or the disk is full; UsageError when ``output`` exists and ``force`` is not set, or
    for an unknown ABI; RuntimeUnavailable when an operator library is not there.
    """
    for abi in abis:
        if abi not in ABIS:
            raise UsageError(f"abi '{abi}': not one of {', '.join(ABIS)}{suggest(abi, ABIS)}")
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    source, samples = str(source), None if samples is None else Path(samples)
    with BundleWriter(Path(output), force=force) as writer:
        from edgekit.frontend.loading import load

        def opened() -> Source:
            progress("load the model", 0.0)
            return load(source, allow_pickle=allow_pickle, task=task)

        model = opened()
        inputs = _inputs(model, chosen, samples)
        if isinstance(model, ModuleSource) and model.task in ENCODED:
            part, given = _encoder(model, chosen, samples)
            del model
            with BundleWriter(writer.directory / ENCODER) as encoder:
                manifest = _write(part, given, source, chosen, samples, abis, encoder, progress)
                del part
                _checked(encoder, manifest, chosen, progress)
            model = opened()  # the golden vectors let go of weights that became low-bit
            if isinstance(model, ModuleSource) and model.task == PICTURES_TO_TEXT:
                from edgekit.frontend import pictures

                model = pictures.decoder_of(model)
        for asset in model.assets:
            shutil.copyfile(asset, writer.directory / asset.name)
        manifest = _write(model, inputs, source, chosen, samples, abis, writer, progress)
        del model
        return _checked(writer, manifest, chosen, progress)


def _encoder(source: ModuleSource, recipe: Recipe, samples: Path | None) -> tuple[ModuleSource, Inputs]:
    """What reads a text or pictures for a decoder, and its own input."""
    if source.task == PICTURES_TO_TEXT:
        from edgekit.frontend import pictures
        from edgekit.runtime.pictures import views

        return pictures.encoder_of(source, lambda path, info: views(path, info)[0])
    from edgekit.frontend.encoder import encoder_of, sentence_pairs

    part = encoder_of(source)
    return part, sentence_pairs(_inputs(part, recipe, samples))


def _write(
    opened: Source,
    inputs: Inputs,
    source: str,
    recipe: Recipe,
    samples: Path | None,
    abis: Sequence[str],
    writer: BundleWriter,
    progress: Progress,
) -> Manifest:
    """Writes a model's graph, operator libraries and golden vectors; what the bundle's manifest says."""
    from edgekit.golden import write_vectors

    progress("trace the graph", 0.0)
    model = _graph(opened, recipe, inputs, samples, abis, progress)
    give_back_memory()  # the trace is large and full of cycles
    _describe(model)
    write_graph(model, writer.directory, progress)
    described = _manifest(model, opened, recipe, source)
    if described.uses_operators:
        _add_libraries(abis, writer.directory)
    draft = writer.draft(described)
    surviving = facts_of(model).surviving
    del model  # it refers to the weights
    return write_vectors(opened, draft, inputs, surviving, progress)


def _checked(writer: BundleWriter, manifest: Manifest, recipe: Recipe, progress: Progress) -> Bundle:
    """The bundle, when it computes in ONNX Runtime what it should; the caller has let go of the model by now."""
    give_back_memory()
    progress("check in ONNX Runtime", 0.0)
    _check(writer.draft(manifest), recipe)
    progress("check in ONNX Runtime", 1.0)
    return writer.commit(manifest)


def _add_libraries(abis: Sequence[str], directory: Path) -> None:
    """The operator library for each ABI, in ``ops/<abi>/``."""
    for abi in abis:
        library = built_library(abi)
        (directory / OPERATORS / abi).mkdir(parents=True)
        shutil.copyfile(library, directory / OPERATORS / abi / library.name)


def _inputs(source: Source, recipe: Recipe, samples: Path | None) -> Inputs:
    """The input of this export. Raises SourceError where calibration would see nothing real."""
    from edgekit.frontend.inputs import MOST_VECTORS, model_inputs, resolve

    if recipe.static is None:
        return resolve(source, samples)
    if isinstance(source, ModuleSource) and source.task in DECODERS:
        raise UnsupportedError(
            f"recipe {recipe.name}: calibrated ranges are for convolutional nets; use int8 for {source.architecture}"
        )
    inputs = resolve(source, samples, max(MOST_VECTORS, recipe.static.samples))
    if inputs.kind == "random":
        raise SourceError(
            f"recipe {recipe.name}: its ranges come from real input, and all that is known are the example inputs of "
            f"{source.name}, {', '.join(map(str, model_inputs(source)))}; give --samples a directory of pictures or an "
            ".npz"
        )
    return inputs


def _graph(
    source: Source, recipe: Recipe, inputs: Inputs, samples: Path | None, abis: Sequence[str], progress: Progress
) -> ir.Model:
    """The final graph, weights still unread."""
    from edgekit.frontend import decoder
    from edgekit.passes import pipeline

    if source.task in DECODERS and isinstance(source, ModuleSource):
        from edgekit.frontend.streamed import widen

        model = decoder.build(widen(source.module))
    else:
        from edgekit.frontend import generic

        model = generic.build(source, inputs)
    if recipe.static is not None:
        from edgekit.passes.dead_units.removal import RemoveDeadUnits
        from edgekit.passes.static_quantize import quantize_static

        model = RemoveDeadUnits()(model).model
        progress("calibrate", 0.0)
        return quantize_static(model, recipe.static, inputs.for_calibration(recipe.static.samples))
    progress("rewrite the graph", 0.0)
    calibrate = _Moments(source, recipe, inputs, samples, progress) if recipe.calibrate else None
    for step in pipeline(recipe, abis, calibrate):
        model = step(model).model
    return model


@dataclasses.dataclass(frozen=True)
class _Moments:
    """What a layer's inputs are like on real input, for :class:`edgekit.passes.lower_linears.LowerLinears`."""

    source: Source
    recipe: Recipe
    inputs: Inputs
    samples: Path | None
    progress: Progress

    def __call__(self, layers: Collection[str], length: int) -> dict[str, np.ndarray]:
        """By layer the mean squares float32 [K] of its inputs; none where no real input is known or no module runs. A
        decoder reads at most ``length`` tokens at once."""
        if not isinstance(self.source, ModuleSource):
            return {}
        import torch

        from edgekit.frontend.compressed import native_activations
        from edgekit.frontend.decoder.cross import arguments
        from edgekit.frontend.inputs import calibration
        from edgekit.methods.calibrate import mean_squares

        module = self.source.module
        batches = calibration(self.source, self.inputs, self.samples, self.recipe.calibrate, length)
        with native_activations(module):
            given = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
            tensors = [arguments(module, batch) for batch in given]
            means = mean_squares(module, layers, tensors, self.progress)
        return {name: mean.float().numpy() for name, mean in means.items()}


def _describe(model: ir.Model) -> None:
    """Writes what is known of the model on the graph; what an .onnx file says there of itself is another model's."""
    for key in [key for key in model.metadata_props if key.startswith("edgekit.")]:
        del model.metadata_props[key]
    model.metadata_props.update(facts_of(model).metadata())


def _manifest(model: ir.Model, source: Source, recipe: Recipe, spec: str) -> Manifest:
    facts, decoder, pictures = facts_of(model), None, None
    if isinstance(source, ModuleSource) and facts.decoder is not None:
        decoder, pictures = _decoder_info(facts.decoder, source), source.pictures
    return Manifest(
        schema_version=schema_version(decoder, pictures),
        task=source.task,
        name=source.name,
        architecture=source.architecture,
        source=spec,
        recipe=recipe.to_dict(),
        inputs=tuple(_tensor_info(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_info(value) for value in model.graph.outputs),
        nodes=sum(1 for _ in model.graph),
        layers=tuple(facts.layers),
        dead_units=tuple(facts.dead_units),
        decoder=decoder,
        pictures=pictures,
        taps=facts.taps,
        versions=_versions(),
    )


def _tensor_info(value: ir.Value) -> TensorInfo:
    dims = tuple(
        d if isinstance(d, int) else str(d.value or f"{value.name}_{i}") for i, d in enumerate(value.shape or ())
    )
    return TensorInfo(str(value.name), value.dtype.name.lower() if value.dtype else "float", dims)


def _decoder_info(known: DecoderInfo, source: ModuleSource) -> DecoderInfo:
    settings = settings_of(source)
    text = source.config.get_text_config() if source.config is not None else None
    bos, eos = (settings.get(key, getattr(text, key, None)) for key in ("bos_token_id", "eos_token_id"))
    ends = tuple(eos) if isinstance(eos, list | tuple) else (() if eos is None else (eos,))
    values: dict[str, Any] = {**dataclasses.asdict(known), "bos_token_id": bos, "eos_token_ids": ends}
    if known.encoder is not None:
        values["encoder"] |= answers(settings, source)
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


def _check(bundle: Bundle, recipe: Recipe) -> None:
    """Replays a golden vector, or a decoder's all, on the written model in ONNX Runtime; CheckFailed when a parity limit is
    missed."""
    from edgekit.golden import DECODE_STEPS
    from edgekit.runtime.decoder import Decoder
    from edgekit.runtime.replay import feeds, replay, slots
    from edgekit.runtime.session import Session

    vectors = [vector for _, vector in bundle.vectors()]
    answered: list[tuple[dict[str, np.ndarray], str, np.ndarray]] = []
    if bundle.manifest.decoder is not None:
        # Float weights run from the file as it is mapped; ONNX Runtime's second copy would double the peak.
        low_bit = any(FORMATS[layer.format].layout != "floats" for layer in bundle.manifest.layers)
        decoder = Decoder(bundle, 2, max(map(slots, vectors)), prepack=low_bit)
        for vector in vectors:
            answered.append((vector, "logits", replay(decoder, vector, DECODE_STEPS)["logits"]))
    else:
        answers = Session(bundle, 2).run(feeds(vectors[0]))
        answered = [(vectors[0], name, array) for name, array in answers.items()]
    for vector, name, array in answered:
        if f"compressed.{name}" not in vector:
            continue
        for check in judge(tensor_distance(vector[f"compressed.{name}"], array), recipe.parity):
            if not check.passed:
                raise CheckFailed(
                    f"{name}: the written model differs from the compressed PyTorch model: {check.metric} "
                    f"{check.value:.4g}, limit {check.limit:.4g} (recipe {recipe.name}); nothing was kept, please report "
                    "it with the model's config.json"
                )
