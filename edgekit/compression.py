"""From a model to a smaller one: where the methods of ``compress`` meet the models that ``frontend`` reads."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import CheckFailed, EdgekitError, SourceError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from edgekit.compress.config import Compression, Data
    from edgekit.compress.examples import Examples, Objective
    from edgekit.compress.rate import RateReport
    from edgekit.compress.training import Constraint, History
    from edgekit.frontend.source import Source

Progress = Callable[[str, float], None]
REPORT = "compress.json"
WEIGHTS = "model.safetensors"
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Compressed:
    """What came out: the rate of the weights before and after, the training's history, and what ``export`` takes."""

    source: str
    method: str
    settings: dict[str, Any]
    before: RateReport
    after: RateReport
    history: History
    seconds: float
    exportable: str

    def lines(self) -> list[str]:
        """For people."""
        first, last = self.history.evaluations[:1], self.history.evaluations[-1:]
        scores = [
            f"{name}: {first[0][name]:.4f} -> {last[0][name]:.4f}"
            for name in (first[0] if first else ())
            if name != "step"
        ]
        changed = [
            f"{name}: {getattr(self.before.total, key):.3f} -> {getattr(self.after.total, key):.3f}"
            for name, key in (("share of zeros", "zeros"), ("entropy, bits a weight", "entropy"), ("EG0", "golomb"))
        ]
        steps = f"{self.method}, {len(self.history.losses)} steps, {self.seconds:.0f} s"
        return [*self.after.lines(), steps, *scores, *changed, f"next: edgekit export {self.exportable} -o BUNDLE"]

    def to_json(self) -> dict[str, Any]:
        """What compress.json holds."""
        return {
            "version": 1,
            "source": self.source,
            "method": self.method,
            "settings": self.settings,
            "seconds": round(self.seconds, 3),
            "losses": self.history.curve(),
            "evaluations": self.history.evaluations,
            "rate_before": self.before.to_json()["total"],
            "rate": self.after.to_json(),
            "export": self.exportable,
        }


def compress(
    source: str,
    config: Path | Compression,
    output: Path,
    *,
    method: str | None = None,
    resume: bool = False,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = lambda what, share: None,
) -> Compressed:
    """Makes a smaller model of ``source`` (a Hugging Face directory or id, a .gguf, ``package.module:factory``) in ``output``.

    ``config`` is a YAML file (edgekit.compress.config), ``method`` overrides its method. A training writes its state beside
    ``output`` every ``checkpoint_every`` steps and when it is interrupted; ``resume`` goes on from there and ends with the
    same bits, ``force`` begins anew and replaces an earlier result. Nothing else is at ``output`` before it is whole.

    Raises SourceError, RecipeError, UnsupportedError or UsageError for a model, data or settings that do not go together,
    CheckFailed when training diverges, KeyboardInterrupt when it is interrupted.
    """
    from edgekit.compress.config import Compression

    began = time.perf_counter()
    settings = Compression.load(config, method) if isinstance(config, Path) else config.with_method(method)
    checkpoint = _checkpoint(output, resume, force)
    progress("load the model", 0.0)
    found = _load(source, allow_pickle)
    model = found.module
    assert model is not None
    before = _rate(model, settings.report_step)
    examples, evaluation, objective = _data(found, settings, config.parent if isinstance(config, Path) else Path())
    constraint = _constraint(model, settings)
    history = _trained(
        model, settings, (objective, examples, evaluation), constraint, source, checkpoint, resume, progress
    )
    after = _rate(model, settings.report_step)
    exportable = f"{source.partition('@')[0]}@{output}" if found.kind == "factory" else str(output)
    used = settings.to_dict()
    result = Compressed(
        source, settings.method, used, before, after, history, time.perf_counter() - began, exportable
    )  # fmt: skip
    progress("write the model", 1.0)
    _write(found, result, output)
    checkpoint.unlink(missing_ok=True)
    return result


def rate_of(source: str, step: float, *, allow_pickle: bool = False) -> RateReport:
    """The rate of a model's matrices and convolutions as they are, rounded to multiples of ``step``."""
    model = _load(source, allow_pickle).module
    assert model is not None
    return _rate(model, step)


def _checkpoint(output: Path, resume: bool, force: bool) -> Path:
    """Where a training's state is kept; refuses to overwrite or to forget anything unasked."""
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / REPORT).is_file())):
        raise UsageError(f"{output}: is there and no model that edgekit compress made; give -o another directory")
    if (output / REPORT).is_file() and not force:
        raise UsageError(f"{output}: a compressed model is there already; --force replaces it")
    target = Path(output).absolute()
    path = target.with_name(f".{target.name}.checkpoint")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot be made ({error.strerror}); give -o a place that can be written") from error
    if path.exists() and not resume and not force:
        raise UsageError(f"{path}: a training was interrupted here; --resume goes on with it, --force begins anew")
    if resume and not path.exists():
        raise UsageError(f"{path}: no checkpoint to resume from; leave --resume out")
    return path


def _load(source: str, allow_pickle: bool) -> Source:
    """The model in memory, float32 and trainable."""
    from edgekit.frontend.source import load
    from edgekit.frontend.streamed import materialize

    found = load(source, allow_pickle=allow_pickle)
    if found.module is None or found.kind == "pt2":
        raise UnsupportedError(
            f"{source}: a {found.kind} file holds a finished graph; give the PyTorch model (a directory, .gguf or package.module:factory)"
        )
    model = materialize(found.module).float()
    if any(hasattr(module, "activation_block_size") for module in model.modules()):
        raise UnsupportedError(f"{source}: {found.architecture} is ternary already; edgekit export takes it as it is")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return found


def _rate(model: nn.Module, step: float) -> RateReport:
    from edgekit.compress.masks import matrices
    from edgekit.compress.rate import rate_report

    return rate_report({name: weight.detach() for name, weight in matrices(model).items()}, step)


def _data(
    found: Source, settings: Compression, directory: Path
) -> tuple[Examples | None, Examples | None, Objective | None]:
    """Examples to train with and held-out ones, and what is to be learned from them."""
    from edgekit.compress.data import split
    from edgekit.compress.examples import CLASSES, LABELS, LANGUAGE, Examples

    if settings.data is None:
        return None, None, None
    if found.task == "feature-extraction":
        raise UnsupportedError(
            f"{found.name}: an encoder of texts has no loss of its own to train with; give a classifier with this encoder in it"
        )
    language = found.task == "text-generation"
    train = _examples(found, settings.data, settings.data.train, directory)
    if settings.data.evaluate:
        evaluation = _examples(found, settings.data, settings.data.evaluate, directory)
    else:
        train, evaluation = split(train, settings.data.held_out, shuffle=not language)
    if settings.data.most:
        train = Examples(train.select(slice(0, settings.data.most)))
    for which, examples in (("train", train), ("evaluate", evaluation)):
        if not language and LABELS not in examples.arrays:
            raise SourceError(f"compress.data.{which}: has no labels; a classifier learns from an array called labels")
    objective = LANGUAGE if language else CLASSES
    _try(found, objective, train)
    return train, evaluation, objective


def _examples(found: Source, data: Data, given: tuple[str, ...], directory: Path) -> Examples:
    from edgekit.compress.data import arrays, named, tokens
    from edgekit.frontend import factory

    names = _input_names(found)
    first = given[0]
    if len(given) == 1 and _FUNCTION.fullmatch(first) and not (directory / first).exists():
        return named(factory.call(first), names, first)
    paths = [directory / Path(path).expanduser() for path in given]
    if any(path.suffix == ".npz" for path in paths):
        if len(paths) > 1:
            raise SourceError(f"{given[0]}: one .npz stands alone; {len(given)} paths are given")
        return arrays(paths[0], names)
    if found.task != "text-generation":
        raise SourceError(
            f"{first}: texts are for language models; {found.architecture} takes {', '.join(names)}: give an .npz with those and labels"
        )
    tokenizer = next((p for p in found.assets if p.name == "tokenizer.json"), None)
    if tokenizer is None:
        raise SourceError(
            f"{found.name}: has no tokenizer.json to read {first} with; give an .npz with input_ids [n, T]"
        )
    from tokenizers import Tokenizer

    limit = getattr(found.config, "max_position_embeddings", None)
    if limit is not None and data.length > limit:
        raise SourceError(f"compress.data.length: {data.length} tokens, {found.architecture} takes at most {limit}")
    read = Tokenizer.from_file(str(tokenizer))
    return tokens(paths, lambda text: read.encode(text, add_special_tokens=False).ids, data.length)


def _input_names(found: Source) -> list[str]:
    if found.example_inputs is not None:
        return list(found.example_inputs)
    if found.task == "text-generation":
        return ["input_ids"]
    assert found.module is not None
    takes = inspect.signature(found.module.forward).parameters
    return [name for name in INPUTS if name in takes] or list(takes)


def _try(found: Source, objective: Objective, examples: Examples) -> None:
    """Two examples, before anything takes long."""
    assert found.module is not None
    try:
        objective.evaluate(found.module, type(examples)(examples.select(slice(0, 2))))
    except EdgekitError:
        raise
    except Exception as error:  # a model fails on wrong input in any way
        shapes = ", ".join(
            f"{n} {str(a.dtype).removeprefix('torch.')}{list(a.shape[1:])}" for n, a in examples.arrays.items()
        )
        raise SourceError(
            f"{found.name}: {found.architecture} does not run on the data ({shapes}): {' '.join(str(error).split())[:200]}"
        ) from error


def _constraint(model: nn.Module, settings: Compression) -> Constraint | None:
    from edgekit.compress import Backslash, Pruner

    if settings.method == "backslash":
        return Backslash(model, settings.rating())
    return Pruner(model, settings.pruning()) if settings.method in ("prune", "2:4") else None


def _trained(
    model: nn.Module, settings: Compression, data: tuple[Objective | None, Examples | None, Examples | None],
    constraint: Constraint | None, source: str, checkpoint: Path, resume: bool, progress: Progress,
) -> History:  # fmt: skip
    from edgekit.compress import checkpoint as files
    from edgekit.compress.data import digest
    from edgekit.compress.training import History, Run

    objective, examples, evaluation = data
    if objective is None or examples is None:
        return History()
    run = Run(
        model, objective, examples, settings.training, constraint=constraint, evaluation=evaluation,
        hold_after=settings.rating().steps if settings.method == "backslash" else None,
    )  # fmt: skip
    belongs = {"source": source, **settings.to_dict(), "examples": digest(examples)}
    del belongs["training"]["checkpoint_every"]
    if resume:
        run.load_state_dict(files.read(checkpoint, belongs))
    progress("train", run.step / max(1, settings.training.steps))
    return run.go(keep=lambda state: files.write(checkpoint, state, belongs), progress=progress)


def _write(found: Source, result: Compressed, output: Path) -> None:
    """The model's directory, made as a hidden sibling and renamed."""
    target = Path(output).absolute()
    part, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        part.mkdir()
        _save(found, part)
        (part / REPORT).write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(old)
        part.rename(target)
    except OSError as error:
        raise CheckFailed(f"{output}: cannot be written ({error.strerror}); make room or give another -o") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _save(found: Source, directory: Path) -> None:
    """Weights as safetensors; a Hugging Face model as transformers saves it, with its tokenizer and pooling."""
    from safetensors.torch import save_model

    from edgekit.frontend.huggingface import quiet
    from edgekit.frontend.pooling import TextEncoder, sentence_modules

    model: Any = found.module
    if found.kind == "factory":
        save_model(model, str(directory / WEIGHTS))
        return
    inner: Any = model.model if isinstance(model, TextEncoder) else model
    modules = sentence_modules(found.directory) if found.directory is not None else []
    files = directory / modules[0][1] if modules else directory
    with quiet():
        inner.save_pretrained(files)
    for asset in found.assets:
        shutil.copyfile(asset, files / asset.name)
    for name in ("modules.json", *(f"{path}/config.json" for _, path in modules[1:])):
        given = found.directory / name if modules and found.directory is not None else None
        if given is not None and given.is_file():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(given, directory / name)
