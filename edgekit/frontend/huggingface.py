"""A Hugging Face directory -> ``ModuleSource``.

transformers does the loading; a decoder's large weights stay in the files and are read by rows (``streamed``). What it
only warns about is an error here: keys without weights, weights without keys, other shapes, a rope that is not the one
in config.json. Code from a checkpoint is never run.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn

from edgekit.errors import SourceError, UnsupportedError, one_line
from edgekit.frontend import assets, bitnet_weights, pictures, pooling, rope, sound, streamed
from edgekit.frontend.checkpoint import Checkpoint, open_checkpoint, unpickled
from edgekit.frontend.config_file import read_config
from edgekit.frontend.source import ModuleSource
from edgekit.low_rank import read_branches
from edgekit.spec.names import CROSS_TASKS, PICTURES_TO_TEXT, SPEECH_TO_TEXT, TEXT_TO_TEXT

_SUFFIX_TASKS = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForImageClassification", "image-classification"),
    ("Model", "feature-extraction"),
)
SMALL = 1 << 26  # values of a model whose size is not looked at
_AUTO = {
    "text-generation": "AutoModelForCausalLM",
    TEXT_TO_TEXT: "AutoModelForSeq2SeqLM",
    PICTURES_TO_TEXT: "AutoModelForImageTextToText",
    SPEECH_TO_TEXT: "AutoModelForSpeechSeq2Seq",
    "feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
}


def load(directory: Path, *, allow_pickle: bool = False, task: str | None = None, name: str = "") -> ModuleSource:
    """Loads the model in ``directory``, which holds config.json and the weights; a sentence-transformers directory too.

    ``allow_pickle`` accepts pytorch_model.bin, read with weights_only=True; ``task`` None is told by config.json and
    modules.json; ``name`` is what to call it, if not the directory's name. Raises SourceError for a config or weights
    that are missing, damaged, ambiguous or not the model's, or a rope that is misread; UnsupportedError for a
    quantization method or kind of model that edgekit does not compile.
    """
    sentence = pooling.sentence_modules(directory)
    files = directory / sentence[0][1] if sentence else directory
    raw = _read_config(files)
    architectures = raw.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    task = task or ("feature-extraction" if sentence else _task_of(architecture, files))
    answers_at_once = "num_queries" in raw  # DETR and its kin
    if raw.get("is_encoder_decoder") and task not in CROSS_TASKS and not answers_at_once:
        raise UnsupportedError(
            f"{files}/config.json: {architecture} is an encoder-decoder and its task {task}; of these edgekit compiles what "
            f"turns text into text (T5, BART, Marian, ...), task {TEXT_TO_TEXT}, or speech (Whisper, Moonshine), {SPEECH_TO_TEXT}"
        )
    if task == SPEECH_TO_TEXT and architecture not in sound.SPEECH:
        raise UnsupportedError(
            f"{files}/config.json: {architecture} as {task}; of these edgekit compiles {' and '.join(sound.SPEECH)}"
        )
    config = _config(raw, files)
    checkpoint = open_checkpoint(files, allow_pickle=allow_pickle)
    with quiet():
        model, info = _load_model(checkpoint, raw, config, task, architecture)
    _check_keys(info, checkpoint, architecture, model)
    written_by = str(raw.get("transformers_version", ""))
    rope.check(raw, model, f"{files}/config.json", written_by, transformers.__version__)
    model.eval().requires_grad_(False)
    read_branches(model, files)
    if task != "text-generation":
        streamed.materialize(model)
    other = {"pixel_values", "input_values", "input_features"} & set(inspect.signature(model.forward).parameters)
    text = getattr(model, "main_input_name", "input_ids") == "input_ids"
    module: nn.Module = model
    if task == "feature-extraction" and text and not other:
        module = pooling.TextEncoder(model, *pooling.declared_pooling(directory))
    hearing = sound.prepare(model, files) if task == SPEECH_TO_TEXT else None
    carried, cleanup = assets.collect(files, text=text or hearing is not None)
    if cleanup is not None:
        kept = model.get_output_embeddings() if task == PICTURES_TO_TEXT else module  # which the language model keeps
        weakref.finalize(kept, cleanup)
    return ModuleSource(
        kind="hf",
        name=name or directory.resolve().name,
        task=task,
        architecture=type(model).__name__,
        module=module,
        config=model.config,
        assets=carried,
        directory=directory,
        hearing=hearing,
    )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        onnx = sorted(directory.glob("*.onnx"))
        hint = f"; to start from the ONNX file give {onnx[0]}" if onnx else "; it comes with the checkpoint, fetch it"
        raise SourceError(f"{directory}: no config.json, so this is no Hugging Face checkpoint{hint}")
    raw = read_config(path)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise SourceError(
            f"{path}: model_type {model_type!r} is not known to transformers {transformers.__version__}, and code that "
            "comes with a checkpoint is never run; "
            "install a transformers that has it, or build the model in a 'package.module:factory'"
        )
    quantization = raw.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if quantization is not None and method != "bitnet":
        raise UnsupportedError(
            f"{path}: quantization_config: method {method!r} is not read; give the unquantized checkpoint "
            "and let an edgekit recipe quantize it"
        )
    if model_type == "bitnet" and quantization is None:
        raise SourceError(bitnet_weights.missing_quantization_config(path))
    return raw


def _task_of(architecture: str, directory: Path) -> str:
    if not architecture:
        raise SourceError(
            f"{directory}/config.json: no field architectures, so the task is unknown; pass --task "
            "(text-generation, text2text-generation, automatic-speech-recognition, feature-extraction, image-classification)"
        )
    from transformers.models.auto import modeling_auto

    if architecture in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return TEXT_TO_TEXT
    if architecture in sound.SPEECH:
        return SPEECH_TO_TEXT
    if architecture in pictures.FAMILIES:
        return PICTURES_TO_TEXT
    if architecture.endswith("ForConditionalGeneration"):
        raise UnsupportedError(f"{directory}/config.json: {architecture}: {pictures.refused(architecture)}")
    if architecture in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():  # BertGenerationDecoder
        return "text-generation"
    return next((task for suffix, task in _SUFFIX_TASKS if architecture.endswith(suffix)), "generic")


def _config(raw: dict[str, Any], directory: Path) -> Any:
    """The configuration object, without quantization_config: the weights arrive dequantized."""
    values = rope.adapt(raw, int(transformers.__version__.split(".")[0]))
    values = {key: value for key, value in values.items() if key != "quantization_config"}
    try:
        return transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(values)
    # Every configuration class validates in its own way.
    except Exception as error:
        raise SourceError(
            f"{directory}/config.json: transformers {transformers.__version__} refuses it ({one_line(error, 300)}); "
            f"it was written by {raw.get('transformers_version', 'an unknown version')}"
        ) from error


def _model_class(task: str, architecture: str) -> Any:
    """An Auto class; the very class that config.json names where that is the body alone, and for a generic task."""
    model_class = getattr(transformers, architecture, None)
    body = architecture.endswith("Model") and not architecture.endswith("LMHeadModel")  # CLIPTextModel, T5EncoderModel
    if task in _AUTO and not (task == "feature-extraction" and body and model_class is not None):
        return getattr(transformers, _AUTO[task])
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise SourceError(
            f"config.json: architecture '{architecture}' is not a model of transformers {transformers.__version__}; "
            "pass --task to choose one"
        )
    return model_class


def _load_model(
    checkpoint: Checkpoint, raw: dict[str, Any], config: Any, task: str, architecture: str
) -> tuple[Any, dict[str, Any]]:
    """The model, in the dtype in which most weights are stored, and transformers' report on keys."""
    # Mismatched sizes are reported with names by _check_keys instead of a page of text.
    common = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    chosen = _model_class(task, architecture)
    try:
        with torch.device("meta"):  # without weights
            skeleton = chosen._from_config(config) if hasattr(chosen, "_from_config") else chosen.from_config(config)
        _check_size(skeleton, checkpoint)
        if raw.get("quantization_config") is not None:
            return bitnet_weights.load(checkpoint, raw["quantization_config"], skeleton, common)
        if not checkpoint.pickled:
            by_rows = task == "text-generation" and _load_streamed(checkpoint, skeleton, common)
            return by_rows or chosen.from_pretrained(
                checkpoint.directory,
                dtype=getattr(torch, checkpoint.dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **common,
            )
        state = unpickled(checkpoint.files)
        dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
        model, info = type(skeleton).from_pretrained(None, state_dict=state, dtype=dtype, **common)
        return model, info
    except (SourceError, UnsupportedError):
        raise
    # Loaders raise ValueError, RuntimeError, KeyError, SafetensorError, ImportError...; the cause is in the text.
    except Exception as error:
        raise SourceError(
            f"{checkpoint.directory}: transformers {transformers.__version__} cannot load it as {task} "
            f"({type(error).__name__}: {one_line(error, 300)})"
        ) from error


def _check_size(skeleton: Any, checkpoint: Checkpoint) -> None:
    """What has no weight in the files would be made in memory: a config.json may not ask for far more than there is."""
    wanted = sum(tensor.numel() for tensor in (*skeleton.parameters(), *skeleton.buffers()))
    given = sum(file.stat().st_size for file in checkpoint.files)
    if wanted > 8 * given + SMALL:  # ternary weights are four a byte, and a table may be used twice
        raise SourceError(
            f"{checkpoint.directory}/config.json: describes a model of {wanted:,} values, the weight files have {given:,} "
            "bytes; config.json and weights do not belong together"
        )


def _load_streamed(checkpoint: Checkpoint, skeleton: Any, common: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """The model with its large weights left in the files; None where transformers makes something else of them."""
    dtype = getattr(torch, checkpoint.dtype)
    weights = streamed.streamable(checkpoint.tensors, skeleton)
    given = {name: streamed.placeholder(weight.shape, dtype) for name, weight in weights.items()}
    with ExitStack() as stack:
        files = {f: stack.enter_context(safe_open(f, framework="pt")) for f in checkpoint.files}
        others = {n: files[t.file].get_tensor(n) for n, t in checkpoint.tensors.items() if n not in given}
        model, info = type(skeleton).from_pretrained(None, state_dict={**others, **given}, dtype=dtype, **common)
    return (model, info) if streamed.attach(model, given, weights) else None


def _check_keys(info: dict[str, Any], checkpoint: Checkpoint, architecture: str, model: Any) -> None:
    """Every parameter has a weight of its shape, and every weight a parameter."""
    where = checkpoint.directory
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, stored, wanted = mismatched[0]
        raise SourceError(
            f"{where}: tensor '{key}' has shape {list(stored)}, config.json needs {list(wanted)}"
            f"{_more(mismatched)}; config.json and weights do not belong together"
        )
    missing = sorted(info["missing_keys"])
    if missing and all(".pooler." in f".{key}" for key in missing) and hasattr(_base(model), "pooler"):
        _base(model).pooler = None  # its output is not part of ours
        missing = []
    if missing:
        raise SourceError(
            f"{where}: no weight for '{missing[0]}'{_more(missing)} of {type(model).__name__}; the checkpoint is "
            "incomplete or of another architecture"
        )
    unexpected = sorted(info["unexpected_keys"])
    if architecture != type(model).__name__:  # loaded without its head: the head's weights are left over
        prefix = f"{model.base_model_prefix}."
        body = any(key.startswith(prefix) for key in checkpoint.tensors)
        unexpected = [key for key in unexpected if body and key.startswith(prefix)]
    if unexpected:
        raise SourceError(
            f"{where}: weight '{unexpected[0]}'{_more(unexpected)} belongs to nothing in {type(model).__name__}; "
            "the checkpoint is of another architecture or of a newer transformers"
        )


def _base(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)


def _more(items: list[Any]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' progress bars and its advice about missing keys, which become errors here, stay silent."""
    log: Any = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
