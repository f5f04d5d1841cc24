"""``package.module:factory``: the user's own code builds the module, ``...@FILE`` puts other weights into it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import nn

from edgekit.errors import SourceError, one_line
from edgekit.frontend.inputs import plain
from edgekit.frontend.source import ModuleSource
from edgekit.low_rank import read_branches
from edgekit.strict import suggest

_EXPECTED = "return an nn.Module and its example inputs: (module, (tensor, ...)) or (module, {'name': tensor})"


def load(spec: str, *, task: str | None = None) -> ModuleSource:
    """Imports ``module:factory`` and calls the factory without arguments.

    The current directory can be imported from, as with ``python -m``. The factory returns ``(nn.Module,
    example_inputs)``, the inputs a tuple or a dict of tensors with a leading batch dimension; a transformers causal
    language model may come alone, its inputs are known. After an @ may stand a .safetensors file, or a directory with
    model.safetensors, whose tensors replace the module's own. Raises SourceError when it cannot be imported or called,
    returns something else, does not run on its inputs, or the weights given are not its own.
    """
    spec, _, weights = spec.partition("@")
    result = call(spec)
    module, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, nn.Module):
        raise SourceError(f"{spec}: returned {_describe(result)}; {_EXPECTED}")
    module.eval().requires_grad_(False)
    if weights:
        _put_weights(module, Path(weights))
    architecture = type(module).__name__
    config = getattr(module, "config", None)
    is_decoder = architecture.endswith(("ForCausalLM", "LMHeadModel")) and hasattr(config, "model_type")
    if inputs is None:
        if not is_decoder:
            raise SourceError(f"{spec}: returned a {architecture} without example inputs; {_EXPECTED}")
        named = {}
    else:
        named = _named(spec, module, inputs)
        _try(spec, module, named)
    return ModuleSource(
        kind="factory",
        name=spec.rpartition(":")[2],
        task=task or ("text-generation" if is_decoder else "generic"),
        architecture=architecture,
        module=module,
        config=config if hasattr(config, "model_type") else None,
        example_inputs=named,
    )


def _put_weights(module: nn.Module, path: Path) -> None:
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        load_model(module, file)
    # The file's own faults come as SafetensorError or OSError, tensors that do not fit as RuntimeError.
    except Exception as error:
        raise SourceError(
            f"{file}: does not hold the weights of {type(module).__name__} ({_words(error)}); give the safetensors file "
            "that was saved from it"
        ) from error
    if path.is_dir():
        read_branches(module, path)


def _find(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # and left there: the factory's module may import its neighbours later
    importlib.invalidate_caches()
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise SourceError(f"{spec}: no module '{error.name}' in {here} or on the Python path") from error
        raise SourceError(f"{spec}: importing '{module_name}' needs module '{error.name}'; install it") from error
    # The user's file may fail in any way while it is imported.
    except Exception as error:
        raise SourceError(f"{spec}: importing '{module_name}' failed: {_words(error)}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise SourceError(f"{spec}: '{module_name}' has no '{part}'{suggest(part, dir(target))}")
        target = getattr(target, part)
    return target


def call(spec: str) -> Any:
    """What the function ``module:function`` returns. Raises SourceError when it cannot be imported or called."""
    target = _find(spec)
    if isinstance(target, nn.Module):
        raise SourceError(f"{spec}: is a module, not a function that makes one; {_EXPECTED}")
    if not callable(target):
        raise SourceError(f"{spec}: is a {type(target).__name__}, not a function; {_EXPECTED}")
    try:
        inspect.signature(target).bind()
    except TypeError as error:
        raise SourceError(f"{spec}: must be callable without arguments ({error}); give them defaults") from error
    except ValueError:  # builtins without a signature: the call itself will tell
        pass
    try:
        return target()
    except Exception as error:
        raise SourceError(f"{spec}: failed when called: {_words(error)}") from error


def _named(spec: str, module: nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
    """Inputs by the name of the forward argument that takes them."""
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Mapping):
        values = {str(name): value for name, value in inputs.items()}
    elif isinstance(inputs, tuple | list):
        try:
            values = dict(inspect.signature(module.forward).bind(*inputs).arguments)
        except TypeError as error:
            raise SourceError(f"{spec}: example inputs do not fit {type(module).__name__}.forward ({error})") from error
    else:
        raise SourceError(f"{spec}: example inputs are {_describe(inputs)}; {_EXPECTED}")
    wrong = [name for name, value in values.items() if not isinstance(value, torch.Tensor)]
    if not values or wrong:
        what = f"'{wrong[0]}' is {_describe(values[wrong[0]])}, not a tensor" if wrong else "there is none"
        raise SourceError(f"{spec}: example inputs: {what}; {_EXPECTED}")
    return plain(spec, values)


def _try(spec: str, module: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    try:
        with torch.no_grad():
            module(**inputs)
    except Exception as error:
        shapes = ", ".join(f"{name} {str(v.dtype).removeprefix('torch.')}{list(v.shape)}" for name, v in inputs.items())
        raise SourceError(
            f"{spec}: {type(module).__name__} does not run on its example inputs ({shapes}): {_words(error)}"
        ) from error


def _describe(value: Any) -> str:
    name = type(value).__name__
    return f"a {name} of {len(value)}" if isinstance(value, tuple | list) else f"a {name}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 300)}"
