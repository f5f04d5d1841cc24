"""Encoders, vision and audio models of the installed transformers: does edgekit take them, and does the bundle compute the same?

    .venv/bin/python -m benchmarks.encoders [--models BertModel CLIPModel ...] [--csv docs/measured/encoders.csv]

For each class of ``CASES`` a tiny random model is saved, exported as a user would (``edgekit export``, recipe ``fp32``, samples from
an .npz), and the bundle run in plain ONNX Runtime beside transformers on inputs of another batch, and of other lengths where the model
reads text or sound. Every output that transformers gives by default has to be there under its name, and any length has to be taken, or the
row is ``incomplete``. ``equal`` is said of what differs by at most 2e-3 of the largest value; ``refused`` has edgekit's reason, ``crash`` any
other error, ``not built`` what transformers cannot make. ``--csv docs/measured/encoders.csv`` replaces rows of the table of docs/architectures.md.
"""

from __future__ import annotations

import argparse
import inspect
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.architectures import TOLERANCE, off, smaller, survey, write

RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
DETR = {
    "use_timm_backbone": False,
    "backbone": None,
    "backbone_config": {**RESNET, "out_features": ["stage4"]},
    "num_queries": 8,
}
IMAGE = {"image_size": 32, "patch_size": 8}
CASES: dict[str, dict[str, Any]] = {
    # text
    "AlbertModel": {"embedding_size": 32}, "BertModel": {}, "BertForSequenceClassification": {}, "BertForTokenClassification": {},
    "CamembertModel": {}, "ConvBertModel": {"embedding_size": 64}, "DebertaModel": {}, "DebertaV2Model": {}, "DebertaV2ForSequenceClassification": {},
    "DistilBertModel": {"dim": 64, "hidden_dim": 96, "n_heads": 4}, "ElectraModel": {}, "ErnieModel": {}, "EuroBertModel": {},
    "FNetModel": {}, "LongformerModel": {"attention_window": 8}, "MobileBertModel": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "ModernBertModel": {}, "MPNetModel": {}, "NomicBertModel": {}, "RobertaModel": {}, "RobertaForSequenceClassification": {},
    "RoFormerModel": {}, "SqueezeBertModel": {"embedding_size": 64}, "XLMRobertaModel": {}, "YosoModel": {}, "T5EncoderModel": {"d_kv": 16},
        # pictures
    "BeitModel": IMAGE, "BitModel": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4},
    "ConvNextModel": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}, "ConvNextV2ForImageClassification": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    "DeiTForImageClassification": IMAGE, "DepthAnythingForDepthEstimation": {}, "Dinov2Model": IMAGE, "DINOv3ViTModel": IMAGE, "EfficientNetModel": {"hidden_dim": 256, "width_coefficient": 0.2, "depth_coefficient": 0.4},
    "FocalNetModel": {"image_size": 32, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}, "LevitForImageClassification": {},
    "MobileNetV1Model": {}, "MobileNetV2ForImageClassification": {}, "MobileViTForImageClassification": {"image_size": 64}, "MobileViTV2Model": {"image_size": 64},
    "PvtV2Model": {}, "RegNetModel": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    "ResNetForImageClassification": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "SegformerForSemanticSegmentation": {}, "SwinModel": {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
    "ViTModel": IMAGE, "ViTForImageClassification": IMAGE, "ViTMAEModel": IMAGE, "YolosForObjectDetection": {"image_size": [32, 32], "patch_size": 8},
    "DetrForObjectDetection": DETR, "RTDetrForObjectDetection": {"num_queries": 20}, "DFineForObjectDetection": {"num_queries": 20}, "ConditionalDetrForObjectDetection": DETR,
    "Swin2SRForImageSuperResolution": {"image_size": 32, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    # pictures and text apart or together
    "CLIPModel": {}, "CLIPTextModel": {}, "CLIPTextModelWithProjection": {}, "CLIPVisionModel": IMAGE, "CLIPVisionModelWithProjection": IMAGE,
    "SiglipModel": {}, "SiglipTextModel": {}, "SiglipVisionModel": IMAGE, "ChineseCLIPModel": {}, "AltCLIPModel": {},
    # sound
    "Wav2Vec2Model": {}, "Wav2Vec2ForCTC": {}, "HubertModel": {}, "WavLMModel": {}, "SEWModel": {}, "UniSpeechModel": {}, "Data2VecAudioModel": {},
    "ASTForAudioClassification": {"max_length": 64, "num_mel_bins": 32}, "ClapAudioModel": {}, 
}  # fmt: skip
"""Class -> settings that make it small, beside ``smaller``."""
SOUND = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "do_stable_layer_norm": False}  # fmt: skip


def tiny(name: str) -> Any:
    """A random model of a class, float32."""
    import torch
    import transformers

    model_class = getattr(transformers, name)
    kind = model_class.config_class
    config = kind()
    settings = smaller(config)
    if "conv_kernel" in config.to_dict() and "num_feat_extract_layers" in config.to_dict():
        settings |= SOUND
    if "vision_config" in settings:
        settings["vision_config"] |= IMAGE
    if "projection_dim" in config.to_dict():
        settings["projection_dim"] = 48
    config = kind(**(settings | CASES[name]))
    torch.manual_seed(0)
    with torch.device("meta"):
        count = sum(p.numel() for p in model_class._from_config(config).parameters())
    if count > 60_000_000:
        raise ValueError(f"{count:,} parameters")
    model: Any = model_class._from_config(config).eval()
    bounded = not any(
        "BatchNorm" in type(module).__name__ for module in model.modules()
    )  # which in eval limits nothing
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.dim() == 2 and bounded:
                parameter.mul_(4)  # as they are, attention and layers would hardly show in the answer
    return model


def inputs(model: Any, rows: int, length: int) -> dict[str, np.ndarray]:
    """Random input of a model, by the names of its forward's arguments; the second text is half padding."""
    random, names = np.random.default_rng(rows * 100 + length), list(inspect.signature(model.forward).parameters)
    text, vision = (getattr(model.config, part, model.config) for part in ("text_config", "vision_config"))
    given: dict[str, np.ndarray] = {}
    if "input_ids" in names:
        ids, mask = random.integers(3, text.vocab_size - 1, (rows, length)), np.ones((rows, length), np.int64)
        ids[:, -1] = getattr(text, "eos_token_id", None) or 2
        if rows > 1 and "attention_mask" in names:
            mask[1, length // 2 :], ids[1, length // 2 :] = 0, getattr(text, "pad_token_id", None) or 0
            ids[1, length // 2 - 1] = ids[0, -1]
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        segments = (getattr(text, "type_vocab_size", 0) or 0) > 1
        given = {n: a for n, a in given.items() if n in names and (n != "token_type_ids" or segments)}
    if "pixel_values" in names:
        size = getattr(vision, "image_size", None) or 64
        height, width = size if isinstance(size, list | tuple) else (size, size)
        given["pixel_values"] = random.standard_normal((rows, getattr(vision, "num_channels", 3), height, width))
    if "input_values" in names:
        shape = (rows, 64, 32) if type(model).__name__.startswith("AST") else (rows, 400 * length)
        given["input_values"] = random.standard_normal(shape)
    if "input_features" in names:
        given["input_features"] = random.standard_normal((rows, 1, 64, 64))
    return {n: array.astype(np.float32) if array.dtype == np.float64 else array for n, array in given.items()}


def worst(model: Any, directory: Path, length: int) -> tuple[float, str]:
    """The largest difference over all outputs of transformers, and what is missing."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(directory / "model.onnx", options)
    names = [o.name for o in session.get_outputs()]
    differences, missing = [], ""
    for rows, tokens in ((3, length), (1, length), (3, length + 5)):
        feed = inputs(model, rows, tokens)
        taken = {i.name: i for i in session.get_inputs()}
        fixed = any(
            isinstance(size, int) and size != feed[name].shape[axis]
            for name, i in taken.items()
            if name in feed
            for axis, size in enumerate(i.shape)
        )
        if fixed:
            missing += f" fixed size, not {rows} x {tokens};"
            continue
        with torch.no_grad():
            want = model(**{k: torch.from_numpy(v) for k, v in feed.items()}, return_dict=True)
        got = dict(zip(names, session.run(None, {k: v for k, v in feed.items() if k in taken}), strict=True))
        for key, value in want.items():
            if not isinstance(value, torch.Tensor):
                continue
            if key not in got:
                missing += "" if f" no {key};" in missing else f" no {key};"
                continue
            mine, theirs = got[key], value.numpy()
            if "attention_mask" in feed and theirs.shape[:2] == feed["attention_mask"].shape:
                mine, theirs = mine[feed["attention_mask"] > 0], theirs[feed["attention_mask"] > 0]
            differences.append(off(mine.astype(np.float64), theirs.astype(np.float64)))
    return max(differences), missing


def outcome(name: str) -> dict[str, Any]:
    """The row of a class."""
    import edgekit
    from edgekit.errors import EdgekitError

    row: dict[str, Any] = {"type": name}
    with tempfile.TemporaryDirectory() as place:
        source, output, samples = Path(place) / "model", Path(place) / "bundle", Path(place) / "samples.npz"
        try:
            model = tiny(name)
            model.save_pretrained(source)
            length = 12
            given = inputs(model, 4, length)
            import torch

            with torch.no_grad():
                model(**{k: torch.from_numpy(v) for k, v in given.items()})
            np.savez(samples, **given)  # type: ignore[arg-type]
        except Exception as error:
            return row | {"outcome": "not built", "why": f"{type(error).__name__}: {error}"}
        try:
            edgekit.export(source, "fp32", output, samples=samples)
        except EdgekitError as error:
            kind = "failed its check" if type(error).__name__ == "CheckFailed" else "refused"
            return row | {"outcome": kind, "why": str(error).replace(place, "")}
        except Exception as error:
            return row | {"outcome": "crash", "why": f"{type(error).__name__}: {error}"}
        try:
            difference, missing = worst(model, output, length)
        except Exception as error:
            return row | {"outcome": "wrong", "why": f"{type(error).__name__}: {error}"}
    if missing:
        return row | {"outcome": "incomplete", "difference": difference, "why": missing.strip()}
    return row | {"outcome": "equal" if difference <= TOLERANCE else "wrong", "difference": difference}


def main() -> None:
    """Tries, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES), metavar="CLASS", help="all unless given")
    parser.add_argument("--csv", type=Path, help="the rows as a table; rows of other classes that are in it stay")
    options = parser.parse_args()
    rows = survey(options.models, outcome)
    print(dict(Counter(row["outcome"] for row in rows)))
    if options.csv:
        write(rows, options.csv)


if __name__ == "__main__":
    main()
