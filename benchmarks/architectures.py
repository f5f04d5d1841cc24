"""Every causal language model of the installed transformers: does edgekit take it, and does the bundle compute the same?

    .venv/bin/python -m benchmarks.architectures [--types llama qwen3 ...] [--quick] [--csv FILE.csv]
        [--json FILE.json]

For each model type a tiny random model is made from its own default configuration, saved, exported as a user would
(``edgekit.export``, recipe ``fp32``), and the bundle run in plain ONNX Runtime beside transformers: a prompt, several tokens on a
filled cache, ten single steps, and two rows of which one is padded on the left. ``equal`` is said of what differs by at most
2e-3 of the largest logit; ``wrong`` must never appear; ``refused`` has edgekit's reason, ``crash`` any other error, ``not built`` what
transformers itself cannot make so small. Types run in processes of their own that
stop after five minutes. ``--csv docs/measured/architectures.csv`` replaces the table of docs/architectures.md; it takes the rows
of several runs (``--types``) when the file is there already.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 2e-3
LENGTH, PROMPT = 27, 12
SECONDS = 300
VOCABULARY = 97
MOST = 20_000_000
MOST_WORDS = 200  # characters of a reason in the table

SMALL: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "n_tokens"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "dim_model"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff", "dim_ff"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("head_dim", "global_head_dim", "swa_head_dim", "v_head_dim", "kv_channels", "attention_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_head_dim"), 16),
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 8,
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads", "laurel_rank"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_d_head", "mamba_head_dim", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    "rotary_dim": 8, "lru_width": 64, "time_step_rank": 4, "mamba_d_ssm": 128, "index_topk": 4, "qk_head_dim": 24,
}  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PARTS = ("text_config", "vision_config", "audio_config", "decoder")
"""Configurations inside a configuration that are made small too."""
KINDS = ["sliding_attention", "full_attention"]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1, "num_experts_per_token": 2, "linear_head_dim": 16, "linear_num_heads": 4},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(KINDS, ROPE), "layer_types": KINDS},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "dots1": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": KINDS * 2, "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "kimi_linear": {"num_expert_group": 1, "num_experts_per_token": 2, "linear_head_dim": 16, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "mimo_v2_flash": {"head_dim": 24, "swa_head_dim": 24},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {
        "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 8], "attn_layers": ["local", "lsh"], "feed_forward_size": 96,
        "attention_head_size": 16,
    },
    "xlm": {"emb_dim": 64, "causal": True},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a type needs beside that, because its default configuration leaves it open or its sizes must fit one another."""


def smaller(config: Any) -> dict[str, Any]:
    """What to give a configuration's class so that its model is tiny; lists with an entry a layer keep one of each kind."""
    said = config.to_dict()
    settings: dict[str, Any] = {k: v for k, v in SMALL.items() if isinstance(said.get(k), int)}
    settings.update({k: v for k, v in TOKENS.items() if k in said})
    if "kv_lora_rank" in said:  # every head has its own keys there
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    for key in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if isinstance(said.get(key), list) and said[key]:
            kinds = list(dict.fromkeys(said[key]))[:2]
            settings[key] = kinds if len(kinds) == 2 else kinds * 2
    for part in PARTS:
        inner = getattr(config, part, None)
        if inner is not None and hasattr(inner, "to_dict"):
            settings[part] = smaller(inner)
    return settings | OWN.get(config.model_type, {})


def tiny(model_type: str) -> Any:
    """A random model of a type, float32; norms and biases are random too, so that leaving one out shows."""
    import torch
    import transformers

    kind = transformers.CONFIG_MAPPING[model_type]
    settings = smaller(kind())
    if "is_decoder" in kind().to_dict() or kind().to_dict().get("is_encoder_decoder"):
        settings |= {"is_decoder": True, "is_encoder_decoder": False}
    config = kind(**settings)
    torch.manual_seed(0)
    with torch.device("meta"):
        count = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if count > MOST:
        raise ValueError(f"{count:,} parameters, more than {MOST:,}: some size of the configuration is not in SMALL")
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
        model(input_ids=torch.arange(PROMPT)[None], use_cache=False)  # or its sizes do not fit one another
    return model


class Bundle:
    """An exported decoder in plain ONNX Runtime, its cache handed from run to run."""

    def __init__(self, directory: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.session = onnxruntime.InferenceSession(directory / "model.onnx", options)
        self.caches = [i for i in self.session.get_inputs() if i.name.startswith("past_")]
        self.past: list[np.ndarray] | None = None

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits float32 [B, S, V] of tokens int64 [B, S]; the mask int64 [B, total] covers what came before too."""
        feed: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "logits_to_keep": np.zeros(1, np.int64)}
        for index, cache in enumerate(self.caches):
            empty = [0 if size == "past_sequence_length" else size for size in cache.shape[1:]]
            feed[cache.name] = np.zeros((len(ids), *empty), np.float32) if self.past is None else self.past[index]
        logits, *self.past = self.session.run(None, feed)
        return logits  # type: ignore[no-any-return]


def off(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a share of the largest logit."""
    return float(np.abs(mine - theirs).max() / max(1e-9, np.abs(theirs).max()))


def worst(model: Any, directory: Path) -> float:
    """The largest difference between bundle and model over all the ways in which a decoder is used."""
    import torch

    random = np.random.default_rng(0)
    long, short = random.integers(3, VOCABULARY - 1, (2, 1, LENGTH))

    def answer(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()  # type: ignore[no-any-return]

    def ones(rows: int, length: int) -> np.ndarray:
        return np.ones((rows, length), np.int64)

    want, other = answer(long), answer(short)
    bundle = Bundle(directory)
    differences = [off(bundle.run(long[:, :PROMPT], ones(1, PROMPT)), want[:, :PROMPT])]
    differences.append(off(bundle.run(long[:, PROMPT : PROMPT + 5], ones(1, PROMPT + 5)), want[:, PROMPT : PROMPT + 5]))
    for end in range(PROMPT + 6, PROMPT + 16):
        differences.append(off(bundle.run(long[:, end - 1 : end], ones(1, end)), want[:, end - 1 : end]))
    bundle, padding = Bundle(directory), 5
    ids, mask = np.concatenate([long, short])[:, :PROMPT].copy(), ones(2, PROMPT)
    ids[1], mask[1, :padding] = np.concatenate([np.zeros(padding, np.int64), short[0, : PROMPT - padding]]), 0
    logits = bundle.run(ids, mask)
    differences += [off(logits[0], want[0, :PROMPT]), off(logits[1, padding:], other[0, : PROMPT - padding])]
    for step in range(3):
        ids = np.array([[long[0, PROMPT + step]], [short[0, PROMPT - padding + step]]])
        mask = np.concatenate([mask, ones(2, 1)], axis=1)
        logits = bundle.run(ids, mask)
        differences += [off(logits[0, 0], want[0, PROMPT + step]), off(logits[1, 0], other[0, PROMPT - padding + step])]
    return max(differences)


def graph_alone(source: Path, output: Path) -> None:
    """What ``edgekit.export`` does but for the golden vectors: loads a directory, writes the graph."""
    import onnx_ir as ir

    from edgekit.errors import UnsupportedError
    from edgekit.frontend import huggingface
    from edgekit.frontend.decoder import build
    from edgekit.passes import pipeline
    from edgekit.recipe import Recipe

    loaded = huggingface.load(source)
    if loaded.task != "text-generation":
        raise UnsupportedError(f"{loaded.architecture} is taken for {loaded.task}")
    graph = build(loaded.module)
    for step in pipeline(Recipe.load("fp32")):
        graph = step(graph).model
    output.mkdir()
    ir.save(graph, output / "model.onnx")


def outcome(model_type: str, quick: bool) -> dict[str, Any]:
    """The row of a type."""
    import edgekit
    from edgekit.errors import EdgekitError

    row: dict[str, Any] = {"type": model_type}
    with tempfile.TemporaryDirectory() as place:
        source, output = Path(place) / "model", Path(place) / "bundle"
        try:
            model = tiny(model_type)
            model.save_pretrained(source)
        except Exception as error:
            return row | {"outcome": "not built", "why": f"{type(error).__name__}: {error}"}
        try:
            if quick:
                graph_alone(source, output)
            else:
                edgekit.export(source, "fp32", output)
        except EdgekitError as error:
            kind = "failed its check" if type(error).__name__ == "CheckFailed" else "refused"
            return row | {"outcome": kind, "why": str(error).replace(place, "")}
        except Exception as error:
            return row | {"outcome": "crash", "why": f"{type(error).__name__}: {error}"}
        try:
            difference = worst(model, output)
        except Exception as error:
            return row | {"outcome": "wrong", "why": f"{type(error).__name__}: {error}"}
    return row | {"outcome": "equal" if difference <= TOLERANCE else "wrong", "difference": difference}


Answer = Callable[[str], dict[str, Any]]
"""A type's row."""


def quiet(answer: Answer, name: str, connection: Any) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        connection.send(answer(name))


def warm_up() -> None:
    """What every type needs is imported once, before the processes are forked."""
    import warnings

    import torch
    import transformers

    import edgekit.exporter
    from edgekit.frontend.decoder import build

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    assert edgekit.exporter and build(tiny("llama"))


def survey(types: list[str], answer: Answer) -> list[dict[str, Any]]:
    """A row for each type, each in a process of its own."""
    warm_up()
    context = multiprocessing.get_context("fork")
    rows = []
    for model_type in types:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=quiet, args=(answer, model_type, sending))
        process.start()
        sending.close()
        row: dict[str, Any] = {
            "type": model_type,
            "outcome": "crash",
            "why": f"no answer within {SECONDS} s, or killed",
        }
        with contextlib.suppress(EOFError):
            if receiving.poll(SECONDS):
                row = receiving.recv()
        process.kill()
        process.join()
        rows.append(row)
        print(f"{row['outcome']:17}{model_type:28}{row.get('why', row.get('difference', ''))}"[:200], flush=True)
    return rows


def types() -> list[str]:
    """The model types of all causal language models of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def read(file: Path) -> dict[str, dict[str, str]]:
    """The rows of a table by model type."""
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["type"]: row for row in csv.DictReader(lines)}


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """Replaces these rows of a table, or makes it."""
    table: dict[str, dict[str, Any]] = dict(read(file)) if file.is_file() else {}
    for row in rows:
        why = " ".join(str(row.get("why", "")).split())[:MOST_WORDS]
        difference = f"{row['difference']:.1e}" if "difference" in row else ""
        table[row["type"]] = {"type": row["type"], "outcome": row["outcome"], "difference": difference, "why": why}
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, ["type", "outcome", "difference", "why"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table[name] for name in sorted(table))


def main() -> None:
    """Tries, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="model types of config.json; all unless given")
    parser.add_argument("--quick", action="store_true", help="the graph alone, without golden vectors: half the time")
    parser.add_argument("--json", type=Path, help="the rows, as one JSON document")
    parser.add_argument("--csv", type=Path, help="the rows as a table; rows of other types that are in it stay")
    options = parser.parse_args()
    rows = survey(options.types or types(), partial(outcome, quick=options.quick))
    print(dict(Counter(row["outcome"] for row in rows)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.csv:
        write(rows, options.csv)


if __name__ == "__main__":
    main()
