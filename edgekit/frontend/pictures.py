"""A model of pictures and text as two: an encoder that turns views of pictures into rows of features, and a language model."""

from __future__ import annotations

import copy
import dataclasses
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from edgekit.errors import CheckFailed, SourceError, UnsupportedError, one_line
from edgekit.frontend.decoder.ops import place
from edgekit.frontend.inputs import Inputs
from edgekit.frontend.samples import DATA, picture_files
from edgekit.frontend.sound import SPEECH
from edgekit.frontend.source import ModuleSource
from edgekit.spec.names import FEATURES, LARGEST_VIEW, MOST_TILES, RESAMPLINGS
from edgekit.spec.records import Pictures

PHOTOS = 3
"""Golden vectors of an encoder of pictures."""
TOLERANCE = 2e-4
"""Largest difference allowed between the whole model and its two halves, relative to the largest logit."""
MODULES = {module.name for module in pkgutil.iter_modules(transformers.__path__)}
AROUND = "<fake_token_around_image>"


@dataclass(frozen=True)
class _Family:
    """Where the parts of a class of models are; ``tiles``: their prompts name rows and columns of tiles."""

    body: str
    tiles: bool


FAMILIES = {
    "Idefics3ForConditionalGeneration": _Family("text_model", True),
    "SmolVLMForConditionalGeneration": _Family("text_model", True),
    "LlavaForConditionalGeneration": _Family("language_model", False),
}
"""The classes that are taken."""
TILING = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
PLAIN = ("CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor")
"""Image processors that are known, of models with and without tiles."""
BOTH_WAYS = ("Gemma3For", "Gemma4For", "Gemma4Unified", "PaliGemma", "Molmo2", "DeepseekOcr2", "UnlimitedOcr")
THREE_NUMBERS = (
    "Qwen2VL", "Qwen2_5_VL", "Qwen2_5Omni", "Qwen3VL", "Qwen3OmniMoe", "Qwen3_5", "Qwen4Exp", "Glm4v", "Glm46V", "GlmOcr",
    "Ernie4_5_VL", "PaddleOCRVL", "HunYuanVL", "HYV4VL", "CohereCompass", "Cosmos3", "MiniCPMV4_7",
)  # fmt: skip
REASONS = (
    (BOTH_WAYS, "the tokens of a picture see each other in both directions, and edgekit's attention is causal"),
    (THREE_NUMBERS, "positions of a picture's tokens have three numbers (mrope), and edgekit's have one"),
    (("Mllama",), "layers attend to a picture across, and edgekit has no such layer in a language model"),
    (("LlavaNext", "LlavaOnevision"), "a picture's rows of features are cut and joined by its proportions (anyres)"),
)
"""Beginnings of other classes' names, and why they are not."""


def refused(architecture: str) -> str:
    """Why a class of models that take pictures or sound is not exported."""
    reason = next((why for names, why in REASONS if architecture.startswith(names)), "")
    known = ", ".join(name.removesuffix("ForConditionalGeneration") for name in (*FAMILIES, *SPEECH))
    return reason or f"takes images or audio with text, of which edgekit knows {known}"


class PictureEncoder(nn.Module):
    """The tower of vision with the connector to the language model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """``image_features`` float32 [n, rows, width] of views [n, 3, H, W]."""
        body: Any = self.model.model
        # Not get_image_features: it drops views that are all zeros, which no picture gives, or takes a batch apart.
        if hasattr(body, "connector"):
            hidden = body.vision_model(pixel_values=pixel_values, return_dict=True).last_hidden_state
            return {FEATURES: body.connector(hidden)}
        layers = body.config.vision_feature_layer
        states = body.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        chosen = [states[layer] for layer in (layers if isinstance(layers, list) else [layers])]
        first = 1 if body.config.vision_feature_select_strategy == "default" else 0  # without the class token
        return {FEATURES: body.multi_modal_projector(torch.cat([each[:, first:] for each in chosen], dim=-1))}


def encoder_of(source: ModuleSource, views: Callable[[Path, Pictures], np.ndarray]) -> tuple[ModuleSource, Inputs]:
    """The encoder of a model of pictures, and the photos that it is judged by, a view of each.

    ``views`` makes float32 [1, 3, H, W] of a picture's file. Raises as :func:`decoder_of`.
    """
    whole = decoder_of(source).pictures  # what is refused is refused before anything takes long
    assert whole is not None
    info = dataclasses.replace(whole, tile="")
    batches = tuple({"pixel_values": views(path, info)} for path in picture_files(DATA / "photos", PHOTOS))
    encoder = PictureEncoder(source.module).eval()
    examples = {"pixel_values": torch.from_numpy(batches[0]["pixel_values"])}
    part = dataclasses.replace(source, task="feature-extraction", module=encoder, example_inputs=examples, assets=())
    return part, Inputs(batches, "sample", "the shipped photos")


def decoder_of(source: ModuleSource) -> ModuleSource:
    """The language model, and how pictures come into it.

    Raises SourceError for settings of an image processor or tokens that are not there, UnsupportedError for those that
    edgekit does not know, CheckFailed when the two halves do not compute what the whole does.
    """
    model: Any = source.module
    family, config = FAMILIES[source.architecture], model.config
    body = getattr(model.model, family.body)
    with torch.device("meta"):
        text = _causal(body.config, source.architecture)
    setattr(text, text.base_model_prefix, body)
    text.set_output_embeddings(model.get_output_embeddings())
    text.config = body.config
    text.eval()
    text.edgekit_picture_token = int(config.image_token_id)
    info = _processor(source)
    with torch.no_grad():
        model.float()
        pixels = torch.rand(1, 3, *info.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        features = PictureEncoder(model)(pixels)[FEATURES]
        _prove(model, text, pixels[None] if family.tiles else pixels, features)
    info = dataclasses.replace(info, rows=features.shape[1], width=features.shape[2])
    _check_rows(source, info)
    return dataclasses.replace(source, module=text, config=config, pictures=info)


def _causal(config: Any, architecture: str) -> Any:
    """An empty causal language model."""
    try:
        return transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except ValueError as error:  # an AutoModel's word for a configuration that it has no class for
        raise UnsupportedError(
            f"{architecture}: its text_config, {config.model_type}, is of no causal language model of transformers"
        ) from error


def _prove(model: Any, text: Any, pixels: Tensor, features: Tensor) -> None:
    """Runs a prompt with and without a picture through both."""
    token = text.edgekit_picture_token
    words = [(index * 7919 + 11) % token for index in range(8)]
    plain = torch.tensor([words])
    pictured = torch.tensor([[*words[:4], *[token] * features.shape[1], *words[4:]]])
    pairs = [
        (model(input_ids=plain, use_cache=False).logits, text(input_ids=plain, use_cache=False).logits),
        (
            model(input_ids=pictured, pixel_values=pixels, use_cache=False).logits,
            _with_features(text, pictured, features.flatten(0, 1)),
        ),
    ]
    error = max(float((whole - half).abs().max() / whole.abs().max().clamp(min=1e-9)) for whole, half in pairs)
    if not error <= TOLERANCE:
        raise CheckFailed(
            f"{type(model).__name__}: encoder and language model are {error:.1e} of the largest logit off the whole "
            f"(limit {TOLERANCE:.0e}); it does something that edgekit does not know; please report it with its config.json"
        )


def _with_features(text: Any, ids: Tensor, features: Tensor) -> Tensor:
    with placed(text, features):
        logits: Tensor = text(input_ids=ids, use_cache=False).logits
    return logits


class placed:
    """Within it a language model reads ``features`` float32 [N, K] at the places of its token of pictures."""

    def __init__(self, model: Any, features: Tensor) -> None:
        token = model.edgekit_picture_token
        self._hook = model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: place(output, args[0], features, token)
        )

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()


def _processor(source: ModuleSource) -> Pictures:
    """What the image processor's settings say; rows and width are filled in when the encoder has run."""
    settings, tiles = _settings(source), FAMILIES[source.architecture].tiles
    fit, edge, size = _fit(settings, tiles, source)
    normalizes = settings.get("do_normalize")
    token, text = _token(source)
    return Pictures(
        token=token, token_text=text, rows=1, width=1, size=size, fit=fit, edge=edge,
        resample=RESAMPLINGS[int(settings["resample"])],
        scale=float(settings["rescale_factor"]) if settings.get("do_rescale") else 1.0,
        mean=tuple(map(float, settings["image_mean"])) if normalizes else (0.0,) * 3,
        deviation=tuple(map(float, settings["image_std"])) if normalizes else (1.0,) * 3,
        place=text, whole=f"{AROUND}<global-img>{{image}}{AROUND}" if tiles else "{image}",
        tile=f"{AROUND}<row_{{row}}_col_{{column}}>{{image}}" if tiles and settings.get("do_image_splitting") else "",
    )  # fmt: skip


def _fit(settings: dict[str, Any], tiles: bool, source: ModuleSource) -> tuple[str, int, tuple[int, int]]:
    """How a picture becomes views: one of names.PICTURE_FITS, the side that it is first resized to, the views' size."""
    where, kind = f"{source.directory}: {settings['image_processor_type']}", settings["image_processor_type"]
    taken = TILING if tiles else PLAIN
    if str(kind).removesuffix("Fast") not in taken:
        raise UnsupportedError(f"{where}: of a {source.architecture} edgekit knows {', '.join(taken)}")
    if not settings.get("do_resize") or (not tiles and settings.get("do_pad")):
        raise UnsupportedError(f"{where}: do_resize false or do_pad true is not supported")
    given, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    cut = int(crop.get("height") or 0), int(crop.get("width") or 0)
    if tiles:
        side = int((settings.get("max_image_size") or {}).get("longest_edge") or 0)
        fit, edge, size = "tiles", int(given.get("longest_edge") or 0), (side, side)
    elif given.get("shortest_edge"):
        fit, edge, size = "crop", int(given["shortest_edge"]), cut
        if not settings.get("do_center_crop") or min(cut) < 1 or edge < max(cut):
            raise UnsupportedError(f"{where}: size {given} without a smaller crop_size ({crop}) is not supported")
    else:
        fit, edge, size = "stretch", 1, (int(given.get("height") or 0), int(given.get("width") or 0))
        if settings.get("do_center_crop") and cut != size:
            raise UnsupportedError(f"{where}: crop_size {crop} of another size than {given} is not supported")
    if not all(1 <= number <= LARGEST_VIEW for number in (*size, edge)) or (tiles and edge > MOST_TILES * size[0]):
        raise SourceError(
            f"{where}: size {given}, max_image_size {settings.get('max_image_size')}; numbers from 1 to {LARGEST_VIEW} are expected"
        )
    return fit, 0 if fit == "stretch" else edge, size


def _settings(source: ModuleSource) -> dict[str, Any]:
    """Of the model's image processor, what its files leave out as transformers has it."""
    try:
        plain: dict[str, Any] = {"backend": "pil"} if "image_processing_backends" in MODULES else {"use_fast": False}
        processor = transformers.AutoImageProcessor.from_pretrained(
            source.directory, local_files_only=True, trust_remote_code=False, **plain
        )
        settings: dict[str, Any] = processor.to_dict()
    except Exception as error:  # its loaders raise whatever they do
        raise SourceError(
            f"{source.directory}: no image processor can be made of preprocessor_config.json or processor_config.json "
            f"({one_line(error, 120)}); fetch them, they come with the checkpoint"
        ) from error
    return settings


def _token(source: ModuleSource) -> tuple[int, str]:
    """The token of pictures and its text. Raises SourceError where the tokenizer does not have what a prompt needs."""
    from tokenizers import Tokenizer

    token = int(source.config.image_token_id)
    file = next((path for path in source.assets if path.name == "tokenizer.json"), None)
    if file is None:
        raise SourceError(f"{source.directory}: no tokenizer.json; a prompt with pictures cannot be made without")
    tokenizer = Tokenizer.from_file(str(file))
    text = tokenizer.id_to_token(token)
    wanted = [text or "", AROUND] if FAMILIES[source.architecture].tiles else [text or ""]
    for word in wanted:
        if not word or len(tokenizer.encode(word, add_special_tokens=False).ids) != 1:
            raise SourceError(
                f"{file}: {word or token!r} is no token of its own, config.json has image_token_id {token}; "
                "tokenizer and config.json do not belong together"
            )
    return token, str(text)


def _check_rows(source: ModuleSource, info: Pictures) -> None:
    """A processor that makes room for another number of rows than there are would make prompts that the model refuses."""
    from edgekit.strict import read_json

    path = Path(str(source.directory)) / "processor_config.json"
    told = read_json(path, SourceError, "fetch the file again").get("image_seq_len") if path.is_file() else None
    if FAMILIES[source.architecture].tiles and told not in (None, info.rows):
        raise SourceError(
            f"{path}: image_seq_len {told}, the model gives {info.rows} rows of features for a view of {info.size}"
        )
