"""Layers of other kinds beside plain attention of equal bytes: time of a token and of a prompt, and what the scan costs in it.

    python -m benchmarks.llm.layer_kinds [--kinds lfm2 qwen3_5_text ...] [--threads 1] [--recipe int4] [--json]

Each kind is a random model of four layers in the sizes of small models of its family, exported with a recipe. Beside it stands a
LLaMA of as many layers whose feed-forward is so wide that a token reads as many bytes of weights; both run in turns.
Milliseconds of processor time, medians: a token behind 128 others, and a prompt of 512. Beside them the bytes that a token reads
(all weights but tables and the experts that were not chosen), and, in a process of its own, what of the file is in memory after
one token and the private memory with Python's. The parts of a prompt's time that operators take are those of ONNX Runtime's profile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from edgekit.bundle import Bundle
from edgekit.recipe import Limits
from edgekit.runtime.decoder import Decoder
from edgekit.spec.names import DATA, EXPERT_MATMUL

WORDS, LAYERS, WIDTH = 4096, 4, 1024
COMMON = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "max_position_embeddings": 2048, "tie_word_embeddings": False}  # fmt: skip
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8}
KINDS: dict[str, dict[str, Any]] = {
    "lfm2": HEADS | {"layer_types": ["conv"] * 3 + ["full_attention"], "intermediate_size": 4608, "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": {
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "intermediate_size": 3584, "linear_num_value_heads": 16,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    },
    "mamba2": {"num_heads": 32, "head_dim": 64, "state_size": 128, "n_groups": 1},
    "granitemoehybrid": HEADS | {
        "layer_types": ["mamba"] * 3 + ["attention"], "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 2048,
        "mamba_n_heads": 32, "mamba_d_head": 64, "mamba_d_state": 128,
    },
    "qwen3_moe": HEADS | {"head_dim": 64, "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 768},
    "gpt_oss": HEADS | {"head_dim": 64, "num_local_experts": 32, "num_experts_per_tok": 4, "intermediate_size": 768, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "deepseek_v2": {
        "num_attention_heads": 8, "num_key_value_heads": 8, "kv_lora_rank": 256, "q_lora_rank": None, "qk_nope_head_dim": 64, "v_head_dim": 64,
        "qk_rope_head_dim": 32, "intermediate_size": 3072, "first_k_dense_replace": 4, "n_routed_experts": 4,
    },
}  # fmt: skip
"""A model type and what is said to its configuration."""
CONTEXT, PROMPT, STEPS = 128, 512, 8
NOTHING = Limits(sqnr_db=0.0)


def main() -> None:
    """Makes, exports, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    rows = [row(kind, options) for kind in options.kinds]
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))


def row(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """A kind beside plain attention."""
    with tempfile.TemporaryDirectory() as directory:
        own = exported(kind, KINDS[kind], Path(directory) / "own", options.recipe)
        chosen = bytes_of_a_token(own, KINDS[kind].get("num_experts_per_tok", 0))
        plain = as_heavy(chosen, Path(directory), options.recipe)
        result: dict[str, Any] = {"kind": kind, "file_mb": own.model_bytes / 1e6, "chosen_mb": chosen / 1e6}
        result["plain_mb"] = bytes_of_a_token(plain) / 1e6
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            result["mapped_mb"], result["private_mb"] = fresh.apply(memory_of_a_token, (own.directory, options.threads))
        for what, (mine, theirs) in times((own, plain), options).items():
            result |= {f"{what}_ms": mine, f"{what}_plain_ms": theirs}
        result["operators"] = shares(own, options.threads)
    if not options.json:
        print(f"{kind:18} file {result['file_mb']:6.1f} MB, a token reads {result['chosen_mb']:5.1f}, mapped {result['mapped_mb']:5.1f}, "
              f"private {result['private_mb']:5.1f}; plain {result['plain_mb']:5.1f}; token {result['token_ms']:6.2f} ms, plain {result['token_plain_ms']:6.2f}; "
              f"prompt {result['prompt_ms']:7.1f} ms, plain {result['prompt_plain_ms']:7.1f}; {result['operators']}", flush=True)  # fmt: skip
    return result


def exported(kind: str, settings: dict[str, Any], place: Path, recipe: str) -> Bundle:
    """A random model of a type as a bundle."""
    import torch
    import transformers

    import edgekit

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**COMMON | settings))
    for name, parameter in model.named_parameters():
        if name.endswith(("gate.weight", "router.weight")):
            parameter.data *= 50  # or rounding chooses other experts: random scores lie close together
    model.save_pretrained(place / "model")
    # No limit: what rounding does to random experts is no property of a model, and nothing is judged here but time.
    return edgekit.export(place / "model", replace(edgekit.Recipe.load(recipe), parity=NOTHING), place / "bundle")


def as_heavy(count: int, directory: Path, recipe: str) -> Bundle:
    """Plain attention of ``count`` bytes a token, as near as a feed-forward of whole blocks comes."""
    two = [
        exported("llama", HEADS | {"intermediate_size": width}, directory / str(width), recipe)
        for width in (1024, 2048)
    ]
    least, more = (bytes_of_a_token(bundle) for bundle in two)
    width = 64 * max(1, round((1024 + (count - least) / (more - least) * 1024) / 64))
    return exported("llama", HEADS | {"intermediate_size": width}, directory / "plain", recipe)


def bytes_of_a_token(bundle: Bundle, chosen: int = 0) -> int:
    """Bytes of the weights that one token reads: of tables none, of experts the ``chosen`` ones."""
    graph = onnx.load(bundle.graph_path, load_external_data=False).graph
    read = 0.0
    for node in graph.node:
        stored = [bundle.stored[name] for name in node.input if name in bundle.stored]
        share = 0.0 if "Gather" in node.op_type else 1.0
        if node.op_type in ("MoE", "QMoE", EXPERT_MATMUL):
            share = chosen / max(weight.shape[0] for weight in stored)
        read += share * sum(weight.length for weight in stored)
    return round(read)


def memory_of_a_token(directory: Path, threads: int) -> tuple[float, float]:
    """MB of the file with the weights that are in memory after one token, and MB of private memory beside them."""
    decoder = Decoder(Bundle.open(directory), threads)
    decoder.run(np.zeros((1, 1), np.int64))
    mapped, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ")[0].endswith(":"):
            ours = line.endswith(DATA)
        elif ours and line.startswith("Rss:"):
            mapped += int(line.split()[1])
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return mapped / 1e3, int(anonymous.split()[1]) / 1e3


def times(bundles: tuple[Bundle, Bundle], options: argparse.Namespace) -> dict[str, list[float]]:
    """Median milliseconds of processor time of a token and of a prompt, of each bundle."""
    decoders = [Decoder(bundle, options.threads, max_length=PROMPT + STEPS) for bundle in bundles]
    text = np.random.default_rng(0).integers(3, WORDS, (1, PROMPT))
    spent: dict[str, tuple[list[float], list[float]]] = {"token": ([], []), "prompt": ([], [])}
    for turn in range(options.rounds):
        for index in (0, 1) if turn % 2 else (1, 0):
            decoder = decoders[index]
            decoder.reset()
            spent["prompt"][index].append(clocked(lambda: decoder.run(text), 1))  # noqa: B023
            decoder.reset()
            decoder.run(text[:, :CONTEXT])
            spent["token"][index].append(clocked(lambda: decoder.run(text[:, :1]), STEPS))  # noqa: B023
    return {what: [median(each) for each in both] for what, both in spent.items()}


def clocked(run: Callable[[], object], times: int) -> float:
    """Milliseconds of processor time of a run."""
    began = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - began) * 1e3 / times


def shares(bundle: Bundle, threads: int) -> dict[str, float]:
    """The part of a prompt's time that operators which are not products take, by name, from 2 % on."""
    decoder = Decoder(bundle, threads, max_length=PROMPT, profile=True)
    decoder.run(np.random.default_rng(0).integers(3, WORDS, (1, PROMPT)))
    spent: Counter[str] = Counter()
    for event in json.loads(decoder.session.profile_text()):
        if event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = spent.total()
    return {name: round(time / total, 3) for name, time in spent.most_common() if time > 0.02 * total}


if __name__ == "__main__":
    main()
