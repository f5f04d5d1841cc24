"""Greedy text of a small trained ternary model: PyTorch against ONNX Runtime, token by token.

    python -m benchmarks.llm.greedy_text [--tokens 400] [--steps 700] [--json FILE]

There is no trained ternary model in a package, so a small one is trained first (four minutes in all): a byte-level BitNet (4
layers, hidden 256, straight-through absmean ternary weights and 8-bit activations, arXiv 2402.17764) on the prose that ships
with edgekit. It is exported with the recipe ``ternary``; then PyTorch (float32, online mode, every step over the whole text)
and the bundle each continue the same prompts by the likeliest byte. The first byte that differs is printed with PyTorch's
lead of its own choice over the other's, in logits.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from edgekit.bundle import Bundle
from edgekit.exporter import export
from edgekit.frontend.compressed import compressed, native_activations
from edgekit.frontend.loading import load_module
from edgekit.frontend.samples import DATA
from edgekit.golden import packed_weights
from edgekit.runtime.decoder import Decoder

PROMPTS = ("The ", "It was ", "In the ", "A ")
CONTEXT = 128
WORK = Path("build/greedy")


@dataclass(frozen=True)
class Outcome:
    """One prompt: how many bytes came out the same, and if not all, by how much PyTorch preferred its own."""

    against: str  # "original model" or "compressed model"
    prompt: str
    tokens: int
    same: int
    margin: float | None
    least_margin: float  # of all choices that PyTorch made
    text: str


class TernaryLinear(nn.Linear):
    """A linear layer that computes as BitNet b1.58 does and passes gradients straight through both roundings."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x + ((x * scale).round().clamp(-128, 127) / scale - x).detach()
        inverse = 1.0 / self.weight.abs().mean().clamp(min=1e-5)
        weight = self.weight + ((self.weight * inverse).round().clamp(-1, 1) / inverse - self.weight).detach()
        return nn.functional.linear(x, weight)


def main() -> None:
    """Trains what is missing, exports, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--json", type=Path, default=WORK / "greedy_text.json")
    options = parser.parse_args()
    source = WORK / f"model-{options.steps}"
    if not source.is_dir():
        _train(source, options.steps)
    bundle = export(str(source), "ternary", WORK / "bundle", force=True)
    outcomes = _compare(source, bundle, options.tokens)
    for o in outcomes:
        found = "all the same" if o.margin is None else f"then another byte, PyTorch's lead {o.margin:.2g} logits"
        print(f"{o.against}, {o.prompt!r}: {o.same} of {o.tokens} {found}; least lead {o.least_margin:.2g}")
    print(f"the text: {outcomes[0].text!r}")
    options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")


def _train(directory: Path, steps: int) -> None:
    from transformers import BitNetConfig, BitNetForCausalLM

    torch.manual_seed(0)
    config = BitNetConfig(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model: Any = BitNetForCausalLM(config)
    for module in model.model.layers.modules():
        if type(module) is nn.Linear:
            module.__class__ = TernaryLinear
    tokenizer = _tokenizer()
    text = torch.tensor(tokenizer.encode((DATA / "prose.txt").read_text(encoding="utf-8")).ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        starts = torch.randint(0, len(text) - CONTEXT - 1, (16,))
        batch = torch.stack([text[s : s + CONTEXT + 1] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: {loss.item():.3f} nats a byte", flush=True)
    for module in model.model.layers.modules():
        if type(module) is TernaryLinear:
            module.__class__ = nn.Linear  # type: ignore[assignment]  # its parent
    _save(model, tokenizer, directory)


def _tokenizer() -> Tokenizer:
    """One token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _save(model: Any, tokenizer: Tokenizer, directory: Path) -> None:
    part = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save(str(part / "tokenizer.json"))
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
    }  # fmt: skip
    (part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    part.rename(directory)


def _compare(source: Path, bundle: Bundle, count: int) -> list[Outcome]:
    """Against the model as it was trained, and against the compressed one, which has the bundle's 8-bit vocabulary."""
    decoder = Decoder(bundle, 2, max_length=count + 16)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    module = load_module(str(source)).module
    assert module is not None
    outcomes = []
    with native_activations(module):
        outcomes += [_outcome("original model", module, decoder, tokenizer, p, count) for p in PROMPTS]
        with compressed(module, *packed_weights(bundle)):
            outcomes += [_outcome("compressed model", module, decoder, tokenizer, p, count) for p in PROMPTS]
    return outcomes


def _outcome(against: str, module: Any, decoder: Decoder, tokenizer: Tokenizer, prompt: str, count: int) -> Outcome:
    ids = tokenizer.encode(prompt).ids
    ours = _ours(decoder, ids, count)
    theirs, leads = _theirs(module, ids, ours)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), count)
    margin = leads[same] if same < count else None
    return Outcome(against, prompt, count, same, margin, min(leads[: same + 1]), tokenizer.decode(ids + ours))


def _ours(decoder: Decoder, ids: list[int], count: int) -> list[int]:
    decoder.reset()
    logits = decoder.run(np.array([ids], np.int64))
    found: list[int] = []
    for _ in range(count):
        found.append(int(logits[0, -1].argmax()))
        logits = decoder.run(np.array([found[-1:]], np.int64))
    return found


def _theirs(module: Any, ids: list[int], ours: list[int]) -> tuple[list[int], list[float]]:
    """PyTorch's choice after each prefix of our text, and its lead over ours (over the runner-up where they agree).

    As long as the texts agree, the prefix is PyTorch's own text too; after the first difference nothing is counted.
    """
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([ids + ours[:-1]]), use_cache=False).logits[0, len(ids) - 1 :]
    best = logits.topk(2, dim=-1)
    theirs = best.indices[:, 0].tolist()
    chosen = logits.gather(1, torch.tensor(ours)[:, None])[:, 0]
    leads = [
        float(top - (mine if a != b else second))
        for top, second, mine, a, b in zip(best.values[:, 0], best.values[:, 1], chosen, theirs, ours, strict=True)
    ]
    return theirs, leads


if __name__ == "__main__":
    main()
