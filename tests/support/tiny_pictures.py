"""Tiny random models of pictures and text, one for each class that edgekit says it exports, and their directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer

from tests.support.tiny_translators import byte_tokenizer

AROUND, IMAGE = "<fake_token_around_image>", "<image>"
MARKS = [IMAGE, AROUND, "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))]
VOCABULARY = 259 + len(MARKS)
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
TILES: dict[str, Any] = {"scale_factor": 2, "image_token_id": 259, "pad_token_id": 0}
TEMPLATE = (
    "<bos>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}{{':'}}"
    "{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's, with other tokens."""
PROCESSORS: dict[str, dict[str, Any]] = {
    "tiles": {
        "image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32},
        "do_image_splitting": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    },
    "crop": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},
    },
    "stretch": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
}  # fmt: skip
"""preprocessor_config.json by what is done to a picture."""
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "smolvlm": ("SmolVLMConfig", "SmolVLMForConditionalGeneration", {**TILES, "vision_config": VISION}, "tiles"),
    "idefics3": ("Idefics3Config", "Idefics3ForConditionalGeneration", {**TILES, "vision_config": VISION}, "tiles"),
    "llava-clip": (
        "LlavaConfig", "LlavaForConditionalGeneration",
        {"image_token_id": 259, "vision_config": {"model_type": "clip_vision_model", **VISION}}, "crop",
    ),
    "llava-siglip": (
        "LlavaConfig", "LlavaForConditionalGeneration",
        {
            "image_token_id": 259, "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "vision_feature_select_strategy": "full", "vision_feature_layer": -1,
        },
        "stretch",
    ),
}  # fmt: skip
"""Name -> configuration class, model class, settings, processor."""


def picture_tokenizer() -> Tokenizer:
    """Bytes as tokens, <image> (259) and the marks of tiles; nothing is put around a text."""
    made = byte_tokenizer()
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return made


def picture_model(name: str) -> Any:
    """A model with weights large enough that its answers change from token to token, and with the picture."""
    import transformers

    config, model, settings, _ = MODELS[name]
    torch.manual_seed(0)
    text = {"model_type": "llama", "tie_word_embeddings": False, **TEXT}
    made = getattr(transformers, model)(getattr(transformers, config)(text_config=text, **settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        made.get_input_embeddings().weight.normal_()
    return made


def picture_directory(directory: Path, name: str = "smolvlm", **processor: Any) -> Any:
    """Saves a model with its tokenizer, chat template and settings of its image processor; the model."""
    model = picture_model(name)
    model.save_pretrained(directory)
    picture_tokenizer().save(str(directory / "tokenizer.json"))
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    settings = {**PROCESSORS[MODELS[name][3]], **processor}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return model
