"""SentencePiece's tables of replacements, as the normalizer Precompiled has them."""

from __future__ import annotations

import base64
import struct
import unicodedata
from typing import Any


def charsmap() -> str:
    """NFKC and a few more rules, those of several characters among them, in base64."""
    points = (*range(0xA0, 0x2200), *range(0xFB00, 0x10000))
    rules = {chr(point): unicodedata.normalize("NFKC", chr(point)) for point in points}
    rules = {text: to for text, to in rules.items() if text != to}
    for base in "aeionuAEIONU":
        for mark in "\u0300\u0301\u0303\u0308\u0327":
            rules[base + mark] = unicodedata.normalize("NFKC", base + mark)
    rules |= {
        "\t": " ",
        "\n": " ",
        "\r": " ",
        "\x01": "",
        "\u200b": "",
        "\ufeff": "",
        "\u3000": " ",
        "\r\n": " ",
        "ab": "X",
    }
    rules["\u0e33"] = "\u0e4d\u0e32"
    return base64.b64encode(packed(rules)).decode()


def packed(rules: dict[str, str]) -> bytes:
    """The table's length, a trie of the texts that are replaced, and what replaces them."""
    texts = bytearray()
    values: dict[bytes, int] = {}
    for text, to in sorted(rules.items()):
        values[text.encode()] = len(texts)
        texts += to.encode() + b"\0"
    units = double_array(values)
    table = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(table)) + table + bytes(texts)


def double_array(values: dict[bytes, int]) -> list[int]:
    """A trie as darts-clone writes it: a child lies at its parent's place, xor the parent's offset, xor the byte."""
    tree: dict[int, Any] = {}
    for key, value in values.items():
        node = tree
        for byte in key:
            node = node.setdefault(byte, {})
        node[0] = value
    units = [0] * (1 << 17)
    taken = {0}
    free = 1
    waiting = [(tree, 0, 0)]
    while waiting:
        node, place, label = waiting.pop()
        start = free
        while any(start ^ byte in taken for byte in node):
            start += 1
        while free in taken:
            free += 1
        units[place] = label | (0 in node) << 8 | (place ^ start) << 10
        for byte, child in node.items():
            taken.add(start ^ byte)
            if byte == 0:
                units[start] = child | 1 << 31
            else:
                waiting.append((child, start ^ byte, byte))
    return units[: max(taken) + 256]
