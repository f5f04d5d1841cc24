"""How fast the Android library's tokenizer is on this machine's JVM: megabytes of UTF-8 a second on prose.

    python -m benchmarks.llm.android_tokenizer

A JVM on a desktop, not a phone's: it compares tokenizers with each other and shows what makes one slow.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support.android import tokenizer_kotlin, tokenizer_lines
from tools.demo_models import minilm, smollm2


def main() -> None:
    directories = {"smollm2": smollm2(), "minilm": minilm(), "llama2": tokenizer_kotlin.packaged("llama2")}
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "prose"
        text.write_text("\n".join(tokenizer_lines.prose()[:20_000]), encoding="utf-8")
        print(f"{'tokenizer':<10} {'whole file MB/s':>16} {'line by line MB/s':>18}")
        for name, directory in directories.items():
            answer = tokenizer_kotlin.java("speed", directory, text, options=["-Xmx3g"])
            speeds = dict(line.split() for line in answer.splitlines())
            print(f"{name:<10} {speeds['whole']:>16} {speeds['lines']:>18}", flush=True)


if __name__ == "__main__":
    main()
