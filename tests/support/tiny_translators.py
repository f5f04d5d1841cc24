"""Tiny random encoder-decoders, one or more for each architecture that edgekit says it exports, and their directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

VOCABULARY = 259
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 3,
    "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
TRANSLATORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "t5-gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", T5),
    "umt5": ("UMT5Config", "UMT5ForConditionalGeneration", T5),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART),
    "marian": ("MarianConfig", "MarianMTModel", {**BART, "tie_word_embeddings": False}),
    "m2m-100": ("M2M100Config", "M2M100ForConditionalGeneration", BART),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", BART),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", BART),
    "plbart": ("PLBartConfig", "PLBartForConditionalGeneration", BART),
    "blenderbot": ("BlenderbotConfig", "BlenderbotForConditionalGeneration", BART),
    "blenderbot-small": ("BlenderbotSmallConfig", "BlenderbotSmallForConditionalGeneration", BART),
}
"""Name -> configuration class, model class and settings."""


def translator(name: str, **settings: Any) -> Any:
    """A model with weights large enough that its answers change from token to token, where the head is not the table."""
    import transformers

    config, model, known = TRANSLATORS[name]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**{**known, **settings})).eval()
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if parameter.dim() == 2:
                scale = 0.25 if path.endswith(".q.weight") else 1.0  # T5 does not divide by the root of a head's size
                torch.nn.init.normal_(
                    parameter, std=(1.5 if "T5" in model else 1.0) * scale / parameter.shape[1] ** 0.5
                )
    return made


def byte_tokenizer() -> Tokenizer:
    """Bytes as tokens 3 to 258, <eos> (2) after each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    return made


def translator_directory(directory: Path, name: str = "t5", **generation: Any) -> Any:
    """Saves a model with a tokenizer and settings of generation; the model."""
    model = translator(name)
    model.save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "eos_token": "<eos>"}))
    if generation:
        path = directory / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **generation}))
    return model
