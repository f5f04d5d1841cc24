"""Runs a bundle wherever there are Python, numpy and onnxruntime, as its host tells it to: docs/runner.md.

This file travels: it imports nothing of edgekit and is started as ``python3 runner.py '{"bundle": DIR, ...}'``. It
decides nothing and keeps nothing; what it shares with its host comes in the settings. On the host itself it is what
``local`` runs.
"""

from __future__ import annotations

import base64
import ctypes
import gc
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROTOCOL = 1
STATUS = Path("/proc/self/status")
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
DTYPES = {
    "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

Json = dict[str, Any]


class Refused(Exception):
    """What the host is told: a class of edgekit.errors and a line of text."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main() -> None:
    """Answers requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer: Json) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    settings = json.loads(sys.argv[1])
    try:
        runner = Runner(settings)
        facts = {"onnxruntime": runner.ort.__version__, "runtime": f"Python {platform.python_version()}"}
        say({"runner": PROTOCOL, "pid": os.getpid(), **facts})
        for line in sys.stdin:
            for answer in runner.answer(json.loads(line)):
                say(answer)
    except Refused as error:
        say({"error": error.kind, "message": str(error)})
        sys.exit(1)
    except KeyboardInterrupt:
        pass
    except Exception as error:  # damage that nothing above has a name for
        say({"error": "BundleError", "message": f"{settings['bundle']}: {type(error).__name__}: {_one_line(error)}"})
        sys.exit(1)


class Runner:
    """One bundle and its session."""

    def __init__(self, settings: Json) -> None:
        self.settings = settings
        self.ort = _onnxruntime(settings)
        self.directory = Path(settings["bundle"])
        self.graph = self.directory / settings.get("graph", "model.onnx")
        self.threads, self.library = int(settings["threads"]), settings.get("library", "")
        self.manifest = _manifest(self.directory)
        self.decoder_info: Json | None = self.manifest.get("decoder")
        self.vectors = [v["file"] for v in self.manifest.get("vectors", [])]
        self.prompt, self.new = int(settings.get("prompt_tokens", 1)), int(settings.get("new_tokens", 1))
        self.max_length = int(settings.get("max_length", self.prompt + self.new))
        self._subject: Decoder | Sample | None = None

    def answer(self, request: Json) -> Iterator[Json]:
        """The lines that answer a request."""
        what = request.get("do")
        if what in ("load", "first"):
            yield self._measured(self._load if what == "load" else self.subject.first)
        elif what == "round":
            yield {"times": self._round()}
        elif what == "finish":
            yield {"memory": memory(), "operators": self._operators()}
        elif what == "replay":
            vector = {**self.vector(request["vector"]), **_unpacked(request.get("arrays", {}))}
            yield {"arrays": _packed(self.subject.replay(vector))}
        elif what == "run":
            yield {"arrays": _packed(self.run(self.subject.session, _unpacked(request["arrays"]), request["outputs"]))}
        elif what == "generate":
            yield from self._generate(request)
        elif what == "profile":
            self._subject = None  # two copies of a large model may not fit
            gc.collect()
            yield {"events": self._profile()}
        else:
            raise Refused("UsageError", f"request {what!r}: this runner does not know it; push the runner again")

    def _measured(self, work: Callable[[], None]) -> Json:
        before, began = memory(), time.perf_counter()
        work()
        milliseconds = (time.perf_counter() - began) * 1e3
        return {"ms": milliseconds, "before": before, "after": memory(), "operators": self._operators()}

    def _load(self) -> None:
        session = self._session()
        self._subject = Decoder(self, session, self._encoder()) if self.decoder_info else Sample(self, session)

    def _encoder(self) -> Any:
        """The session of an encoder-decoder's encoder; None for other models."""
        return self.encoder_session() if self.decoder_info and self.decoder_info.get("encoder") else None

    def encoder_session(self) -> Any:
        """The session of the bundle in the bundle."""
        return self._session(encoder=True)

    @property
    def subject(self) -> Any:
        if self._subject is None:
            raise Refused("UsageError", "request before load")
        return self._subject

    def _session(self, profile: str = "", encoder: bool = False) -> Any:
        own = self.directory / "encoder" / "model.onnx" if encoder else self.graph
        ort, options = self.ort, self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(self.settings["spin_us"]))
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        before = self._nodes()
        if self.library:
            options.register_custom_ops_library(self.library)
        graph: Any = str(own)
        if self.graph.parent != self.directory and not encoder:  # its weights are the bundle's all the same
            options.add_session_config_entry(WEIGHTS_FOLDER, str(self.directory))
            graph = self.graph.read_bytes()
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base
            told = f"{own}: ONNX Runtime {ort.__version__} refuses it: {_one_line(error)}"
            raise Refused("BundleError", told) from error
        if self.library and self.settings.get("library_needed", True) and self._nodes() <= before:
            raise Refused(
                "RuntimeUnavailable",
                f"{own}: {self.library} was registered, but ONNX Runtime {ort.__version__} runs the function "
                "bodies instead of its operators; please report it with the model's config.json",
            )
        return session

    def stopped(self, error: Exception) -> Refused:
        """What the host is told of a run that failed."""
        return Refused("BundleError", f"{self.graph}: ONNX Runtime stopped: {_one_line(error)}")

    def run(self, session: Any, feeds: Json, names: list[str] | None = None) -> Json:
        """The outputs by name, all of them unless ``names`` says which."""
        names = names or [output.name for output in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            raise self.stopped(error) from error

    def repeated(self, run: Callable[[], None]) -> list[float]:
        """Milliseconds of each run of a round."""
        return repeated(run, self.settings["round_seconds"], self.settings["round_runs"])

    def _operators(self) -> str:
        if not self.library:
            return ""
        try:
            version = ctypes.CDLL(self.library).EdgekitOpsVersion
        except (OSError, AttributeError) as error:
            raise Refused("RuntimeUnavailable", f"{self.library}: cannot be loaded here: {error}") from error
        version.restype = ctypes.c_char_p
        text = str(version().decode("ascii"))
        if text.split()[1] == "none":
            have = " ".join(text.partition(";")[0].split()[2:])
            raise Refused(
                "RuntimeUnavailable",
                f"EDGEKIT_ISA={os.environ.get('EDGEKIT_ISA')}: this processor cannot run it; it has {have}. "
                "Unset EDGEKIT_ISA to let the library choose",
            )
        return text

    def _nodes(self) -> int:
        return int(self._operators().partition("; ")[2] or 0)

    def _round(self) -> dict[str, list[float]]:
        gc.disable()  # collection pauses are no property of the model
        try:
            return dict(self.subject.round())
        finally:
            gc.enable()

    def vector(self, file: str) -> Json:
        """A golden vector's arrays by name."""
        if file not in self.vectors:
            raise Refused("BundleError", f"{self.directory}: {file} is no golden vector of its manifest")
        return _safetensors(self.directory / file)

    def _generate(self, request: Json) -> Iterator[Json]:
        if not isinstance(self.subject, Decoder):
            raise Refused("UnsupportedError", f"{self.directory}: no language model; nothing to generate")
        source = _unpacked(request.get("arrays", {}))
        most, stop, languages = int(request["max_new_tokens"]), set(request["stop"]), request.get("languages", [])
        yield from self.subject.generate(request["ids"], most, stop, source, languages)

    def _profile(self) -> list[Json]:
        with tempfile.TemporaryDirectory() as scratch:
            session = self._session(profile=str(Path(scratch) / "profile"))
            if self.decoder_info:
                Decoder(self, session, self._encoder(), slots=1).run([0])
            else:
                Sample(self, session).first()
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return [
            {"op": e["args"]["op_name"], "name": e["name"].removesuffix("_kernel_time"), "us": e["dur"]}
            for e in events
            if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
        ]


class Sample:
    """A model without a cache: its first golden input is what is timed."""

    def __init__(self, runner: Runner, session: Any) -> None:
        self._runner, self.session = runner, session
        self._feeds = _named(runner.vector(runner.vectors[0])) if runner.vectors else {}

    def first(self) -> None:
        self._runner.run(self.session, self._feeds)

    def round(self) -> dict[str, list[float]]:
        return {"latency": self._runner.repeated(self.first)}

    def replay(self, vector: Json) -> Json:
        return self._runner.run(self.session, _named(vector))


class Decoder:
    """A language model with its cache in place."""

    def __init__(self, runner: Runner, session: Any, encoder: Any = None, slots: int = 0) -> None:
        import numpy as np

        info = runner.decoder_info
        assert info is not None
        self._runner, self.session, self._ort = runner, session, runner.ort
        self._piece, self._replay_piece = runner.settings["prompt_piece"], runner.settings["replay_piece"]
        self._options = runner.ort.RunOptions()
        # ONNX Runtime's Python looks this entry up in every run, and finding none costs it an exception of 30 us.
        self._options.add_run_config_entry("gpu_graph_id", "0")
        self._slots, self._new, self.length = slots or runner.max_length, runner.new, 0
        if self._slots > info["max_length"]:
            told = f"{runner.directory}: {self._slots} tokens; the context holds {info['max_length']}"
            raise Refused("UsageError", told)
        self._vocabulary = int(info["vocab_size"])
        self._mask = np.ones((1, self._slots), np.int64)
        self._held: dict[tuple[int, str, str], Any] = {}
        # A pair: a state is read from one buffer and written to another, which is read the next time.
        self._bindings, self._now = (session.io_binding(), session.io_binding()), 0
        for layer, (heads, dim) in enumerate(zip(info["kv_heads"], info["head_dim"], strict=True)):
            for part in ("key", "value") if heads else ():
                cache = np.zeros((1, heads, self._slots, dim), np.float32)
                for now in range(2):
                    self._input(now, f"past_key_values.{layer}.{part}", cache)
                    self._output(now, f"present.{layer}.{part}", cache)
        self._states = []
        for state in info.get("states", []):
            pair = [np.zeros((1, *state["dims"]), np.float32) for _ in range(2)]
            self._states.append(pair)
            for now in range(2):
                self._input(now, state["input"], pair[now])
                self._output(now, state["output"], pair[1 - now])
        vector = runner.vector(runner.vectors[0]) if runner.vectors else {"input.input_ids": np.zeros(1, np.int64)}
        self._prompt = np.resize(vector["input.input_ids"].ravel(), runner.prompt)
        self._encoder, self._source, self._encoded = encoder, _named(vector, "encoder."), False
        answers: Json = info.get("encoder") or {}
        self._never = list(answers.get("suppressed_tokens", []))
        self._never_first = [*self._never, *answers.get("begin_suppressed_tokens", [])]
        if encoder is not None:
            self._prompt = np.asarray(answers["start_tokens"], np.int64)
            for name in self._source.keys() & {"input_ids", "attention_mask"}:
                self._source[name] = np.resize(self._source[name], (1, runner.prompt))
        self._next = 0
        pictures: Json = runner.manifest.get("pictures") or {}
        self._place, self._width, self._eyes = pictures.get("token"), pictures.get("width", 0), None
        self._features = np.empty((0, self._width), np.float32)  # of pictures seen, whose tokens are still to come

    def see(self, source: Json) -> None:
        """Runs the encoder of pictures; their features take the places of the next tokens that stand for them."""
        import numpy as np

        self._eyes = self._eyes or self._runner.encoder_session()
        views = source["pixel_values"]
        seen = [self._runner.run(self._eyes, {"pixel_values": view[None]})["image_features"][0] for view in views]
        self._features = np.concatenate(seen)

    def encode(self, source: Json) -> None:
        """Runs the encoder; its keys and values become the decoder's inputs."""
        import numpy as np

        self._encoded = True
        values = self._runner.run(self._encoder, source)
        rows, _, length, _ = values["cross.0.key"].shape
        values["encoder_attention_mask"] = source.get("attention_mask", np.ones((rows, length), np.int64))
        for name in values.keys() & {wanted.name for wanted in self.session.get_inputs()}:
            for now in range(2):
                self._input(now, name, values[name])

    def run(self, ids: Any, keep: int = 1) -> Any:
        """Feeds tokens [S]; logits float32 [keep or S, V] of the last ``keep`` of them (0: all)."""
        import numpy as np

        if self._encoder is not None and not self._encoded:
            self.encode(self._source)
        ids = np.asarray(ids, np.int64)[None]
        if self.length + ids.shape[1] > self._slots:
            raise Refused("UsageError", f"context full: {self.length} + {ids.shape[1]} tokens, {self._slots} slots")
        logits = np.empty((1, keep or ids.shape[1], self._vocabulary), np.float32)
        self._input(self._now, "input_ids", ids)
        self._input(self._now, "attention_mask", np.ascontiguousarray(self._mask[:, : self.length + ids.shape[1]]))
        self._input(self._now, "logits_to_keep", np.array([keep], np.int64))
        if self._place is not None:
            count = int((ids == self._place).sum())
            self._input(self._now, "image_features", self._features[:count])
            self._features = self._features[count:]
        self._output(self._now, "logits", logits)
        try:
            self.session.run_with_iobinding(self._bindings[self._now], self._options)
        except Exception as error:
            raise self._runner.stopped(error) from error
        self._now = 1 - self._now
        self.length += ids.shape[1]
        return logits[0]

    def reset(self) -> None:
        self.length, self._features = 0, self._features[:0]
        for pair in self._states:
            pair[self._now].fill(0)

    def first(self) -> None:
        self.reset()
        self._encoded = False  # encoding is part of reading a prompt
        self._feed(self._prompt)

    def round(self) -> dict[str, list[float]]:
        prefill, decode = self._runner.repeated(self.first), []
        for _ in range(self._new):
            began = time.perf_counter()
            self._feed([self._next])
            decode.append((time.perf_counter() - began) * 1e3)
        return {"prefill": prefill, "decode": decode}

    def generate(self, ids: list[int], most: int, stop: set[int], source: Json, languages: list[int]) -> Iterator[Json]:
        """A line for each new token, then one that says how it went. The likeliest of ``languages`` is the second of ``ids``."""
        self.reset()
        made, fed = 0, ids
        while True:
            began = time.perf_counter()
            if source and not made:
                (self.encode if self._place is None else self.see)(source)
            if languages and not made:
                chances = self.run(ids[:1])[0, languages]
                fed = [languages[int(chances.argmax())], *ids[2:]]
            self._feed(fed, self._never if made else self._never_first)
            milliseconds = (time.perf_counter() - began) * 1e3
            if self._next in stop:
                yield {"done": True, "finish": "stop", "ms": milliseconds}
                return
            made += 1
            yield {"token": self._next, "ms": milliseconds}
            if made == most or self.length == self._slots:
                yield {"done": True, "finish": "length", "ms": 0.0}
                return
            fed = [self._next]

    def replay(self, vector: Json) -> Json:
        """A golden text: a prompt in pieces, then token by token; every position's prediction in short."""
        import numpy as np

        ids = vector["input.input_ids"].ravel()
        self.reset()
        if self._encoder is not None:
            self.encode(_named(vector, "encoder."))
        if "before.input_ids" in vector:
            self.see(_named(vector, "encoder."))
            self._feed(vector["before.input_ids"].ravel())
        steps = len(vector["compressed.logits"]) - 1
        first = max(1, len(ids) - steps)
        bounds = [*range(0, first, self._replay_piece), *range(first, len(ids) + 1)]
        wanted = {who: vector[f"{who}.top_indices"] for who in ("compressed", "original")}
        parts: list[Json] = []
        last: list[Any] = []
        for start, stop in itertools.pairwise(bounds):
            logits = self.run(ids[start:stop], keep=0)
            part = _summary(logits, ids[start + 1 : stop + 1])
            for who, tokens in wanted.items():
                part[f"at.{who}"] = np.take_along_axis(logits, tokens[start:stop].astype(np.int64), axis=-1)
            parts.append(part)
            last = [*last, *logits[-(steps + 1) :]][-(steps + 1) :]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {**joined, "logits": np.stack(last)}

    def _feed(self, ids: Any, never: list[int] | None = None) -> None:
        for start in range(0, len(ids), self._piece):
            logits = self.run(ids[start : start + self._piece])
        logits[-1, self._never if never is None else never] = float("-inf")
        self._next = int(logits[-1].argmax())

    def _input(self, now: int, name: str, array: Any) -> None:
        self._held[now, "input", name] = array  # ONNX Runtime keeps the address only
        self._bindings[now].bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))

    def _output(self, now: int, name: str, array: Any) -> None:
        self._held[now, "output", name] = array
        self._bindings[now].bind_ortvalue_output(name, self._ort.OrtValue.ortvalue_from_numpy(array))


def _onnxruntime(settings: Json) -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    advice = settings["advice"]
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Refused("RuntimeUnavailable", f"onnxruntime cannot be imported ({error}); {advice}") from error
    oldest = settings["oldest_onnxruntime"]
    if [int(part) for part in ort.__version__.split(".")[:2]] < oldest:
        needed = ".".join(map(str, oldest))
        told = f"onnxruntime {ort.__version__} is installed, bundles need {needed} or newer; {advice}"
        raise Refused("RuntimeUnavailable", told)
    ort.disable_telemetry_events()
    return ort


def _manifest(directory: Path) -> Json:
    try:
        return dict(json.loads((directory / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise Refused("BundleError", f"{directory}: no readable manifest.json ({error})") from error


def _safetensors(path: Path) -> Json:
    """Arrays of a safetensors file, mapped: 8 bytes of header length, a JSON header, the data."""
    import numpy as np

    data = np.memmap(path, np.uint8, "r")
    size = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        start, stop = (8 + size + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[start:stop].tobytes(), DTYPES[entry["dtype"]])
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def _summary(logits: Any, targets: Any) -> Json:
    import numpy as np

    peak = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - peak).sum(axis=-1, dtype=np.float64)).astype(np.float32) + peak[:, 0]
    nll = total[: len(targets)] - logits[np.arange(len(targets)), targets]
    return {"top_indices": logits.argmax(axis=-1), "logsumexp": total, "nll": nll}


def _named(vector: Json, beginning: str = "input.") -> Json:
    """A golden vector's inputs, or those for an encoder (``encoder.``), by their names in the graph."""
    return {name[len(beginning) :]: array for name, array in vector.items() if name.startswith(beginning)}


def _packed(arrays: Json) -> Json:
    import numpy as np

    packed = {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        data = base64.b64encode(array.tobytes()).decode("ascii")
        packed[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}
    return packed


def _unpacked(arrays: Json) -> Json:
    import numpy as np

    return {
        name: np.frombuffer(base64.b64decode(a["data"]), a["dtype"]).reshape(a["shape"]) for name, a in arrays.items()
    }


def repeated(
    run: Callable[[], None], seconds: float, most: int, prepare: Callable[[], None] = lambda: None
) -> list[float]:
    """Milliseconds of each run, at least two and for about ``seconds``; ``prepare`` is not timed."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 2 or (time.perf_counter() < until and len(times) < most):
        prepare()
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def memory() -> Json:
    """MiB of this process: the most it ever had, its own, and of mapped files; None where the system does not say."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"peak": _peak(), "private": None, "file": None}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    sizes = {"peak": "VmHWM", "private": "RssAnon", "file": "RssFile"}
    return {key: int(fields[name].split()[0]) / 1024 if name in fields else None for key, name in sizes.items()}


def _peak() -> float:
    """MiB at most so far, where there is no /proc."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 2**20)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main()
