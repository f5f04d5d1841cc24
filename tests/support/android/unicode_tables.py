"""UnicodeTables.kt, made from what the tokenizers library does with every code point: ``python -m tests.support.android.unicode_tables``.

A JVM and every Android version know another Unicode; the library has several of its own: Oniguruma's in regular expressions,
Rust's in lower case and white space, those of crates in normalization and in BERT's rules. The Kotlin tokenizer must agree
with the library and not with the device, so it carries these tables.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import regex
from tokenizers import Regex, normalizers, pre_tokenizers

from tests.support.android.charsmap import packed

TARGET = (
    Path(__file__).resolve().parents[3] / "android_demo/edgekit/src/main/kotlin/dev/edgekit/tokenizer/UnicodeTables.kt"
)
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
KINDS = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn"
CATEGORIES = KINDS.split()
WRITTEN = "Han Hiragana Katakana Hangul Latin Greek Cyrillic Arabic Hebrew Thai Devanagari Bopomofo"
SCRIPTS = WRITTEN.split()
# The kinds of code points that the rules of grapheme clusters (UAX 29) tell apart; the first that holds counts.
RULES = (
    "GCB=CR GCB=LF GCB=CN GCB=ZWJ InCB=Linker InCB=Extend GCB=Extend GCB=SpacingMark GCB=Prepend GCB=RI GCB=L GCB=V GCB=T "
    "GCB=LV GCB=LVT InCB=Consonant Extended_Pictographic"
)
CLUSTERS = RULES.split()
EXTENDING = [
    CLUSTERS.index(name) + 1 for name in ("GCB=ZWJ", "InCB=Linker", "InCB=Extend", "GCB=Extend", "GCB=SpacingMark")
]
POINTS = [point for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF]
EVERYTHING = "".join(map(chr, POINTS))


def number(value: int) -> str:
    """A number of any size: five bits a digit, the lowest first, the sixth bit says that more follow."""
    digits = ""
    while value >= 32:
        digits += DIGITS[value % 32 + 32]
        value //= 32
    return digits + DIGITS[value]


def numbers(values: Iterable[int]) -> str:
    return "".join(map(number, values))


def boundaries(points: Iterable[int]) -> list[int]:
    """Where a sorted set of code points begins and ends, in turn."""
    edges: list[int] = []
    for point in points:
        if edges and edges[-1] == point:
            edges[-1] = point + 1
        else:
            edges += [point, point + 1]
    return edges


def deltas(values: Iterable[int]) -> list[int]:
    last, found = 0, []
    for value in values:
        found.append(value - last)
        last = value
    return found


def point_set(holds: Callable[[str], bool]) -> str:
    return numbers(deltas(boundaries(point for point in POINTS if holds(chr(point)))))


def matched(pattern: str, among: str = EVERYTHING) -> list[int]:
    """The code points that a regular expression of one character matches in the library."""
    split = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True)
    return [ord(c) for piece, _ in split.pre_tokenize_str(among) for c in piece]


def runs(of: list[int]) -> str:
    """Runs of one kind, given the kind of every code point: 32 * length + kind."""
    found: list[list[int]] = []
    of[0xD800:0xE000] = [of[0xE000]] * 0x800  # never asked for; the run stays whole
    for kind in of:
        if found and found[-1][0] == kind:
            found[-1][1] += 1
        else:
            found.append([kind, 1])
    return numbers(32 * length + kind for kind, length in found)


def categories() -> str:
    """General category in the library's regular expressions."""
    of = [len(CATEGORIES)] * (sys.maxunicode + 1)
    left = EVERYTHING
    for name in sorted(CATEGORIES, key=["Cn", "Co", "Lo"].count, reverse=True):  # the large ones first: less is left
        found = matched(rf"\p{{{name}}}", left)
        for point in found:
            of[point] = CATEGORIES.index(name)
        left = left.translate(dict.fromkeys(found))
    assert of.count(len(CATEGORIES)) == 0x800, "a code point without category"
    return runs(of)


def clusters() -> str:
    """Kinds of CLUSTERS, from 1, of the module regex, as far as the library knows them: it may know an older Unicode."""
    joins = normalizers.Precompiled(packed({"a": "b"}))  # takes all of a short cluster for its first character
    of = [0] * (sys.maxunicode + 1)
    for kind, name in reversed(list(enumerate(CLUSTERS, 1))):
        for match in regex.finditer(rf"\p{{{name}}}+", EVERYTHING):
            for c in match[0]:
                of[ord(c)] = kind
    for point in POINTS:
        if joins.normalize_str("a" + chr(point)) == "b":
            assert of[point] in EXTENDING, f"U+{point:04X}"
        elif of[point] in EXTENDING:
            of[point] = 0
    of[0xAC00:0xD7A4] = [0] * 11172  # Hangul syllables are computed
    return runs(of)


def decompositions() -> str:
    """One entry a code point: distance, 4 * length + 2 * compatibility + composes again, what it becomes in one step."""
    nfd, nfkd, nfc = normalizers.NFD(), normalizers.NFKD(), normalizers.NFC()
    values: list[int] = []
    last = 0
    for point in POINTS:
        c = chr(point)
        canonical, compatible = nfd.normalize_str(c), nfkd.normalize_str(c)
        if (canonical == c and compatible == c) or 0xAC00 <= point <= 0xD7A3:  # Hangul syllables are computed
            continue
        parts = unicodedata.decomposition(c).split()
        tagged = parts[0].startswith("<")
        step = [int(part, 16) for part in parts[tagged:]]
        assert tagged == (canonical == c), f"U+{point:04X}"
        composes = not tagged and nfc.normalize_str(c) == c
        values += [point - last, 4 * len(step) + 2 * tagged + composes, *step]
        last = point
    return numbers(values)


def combining_classes() -> str:
    """Runs of one combining class other than 0: distance, length, class."""
    nfd = normalizers.NFD()
    runs: list[list[int]] = []
    for point in POINTS:
        c = chr(point)
        after = nfd.normalize_str("\u0345" + c) == c + "\u0345"  # classes 1 to 239 go before 240
        before = nfd.normalize_str(c + "\u0334") == "\u0334" + c  # classes above 1 go after 1
        if not (after or before) or nfd.normalize_str(c) != c:
            continue
        value = unicodedata.combining(c)
        assert value > 0, f"U+{point:04X}"
        if runs and runs[-1][0] + runs[-1][1] == point and runs[-1][2] == value:
            runs[-1][1] += 1
        else:
            runs.append([point, 1, value])
    last, values = 0, []
    for start, length, value in runs:
        values += [start - last, length, value]
        last = start
    return numbers(values)


def lower_case() -> str:
    """Code points whose lower case is another one: distance, then the zigzag difference."""
    lower = normalizers.Lowercase()
    last, values = 0, []
    for point in POINTS:
        result = lower.normalize_str(chr(point))
        if result == chr(point):
            continue
        if point == 0x130:  # the only one that becomes two characters: written in the code
            assert result == "i\u0307"
            continue
        difference = ord(result) - point
        values += [point - last, 2 * difference if difference >= 0 else -2 * difference - 1]
        last = point
    return numbers(values)


def tables() -> dict[str, tuple[str, str]]:
    """Name, what it holds, and the numbers."""
    cleaned = normalizers.BertNormalizer(True, False, False, False)
    accents = normalizers.BertNormalizer(False, False, True, False)
    strip = normalizers.StripAccents()
    punctuation = pre_tokenizers.Punctuation("removed")
    word, digits = pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)
    white = pre_tokenizers.WhitespaceSplit()
    found = {
        "CATEGORIES": ("General category in regular expressions, as runs: 32 * length + index.", categories()),
        "SPACE": (r"Regular expressions: \s.", numbers(deltas(boundaries(matched(r"\s"))))),
        "WORD": (r"Regular expressions: \w.", numbers(deltas(boundaries(matched(r"\w"))))),
        "RUST_WORD": (
            "Word characters of Whitespace and of added tokens that stand alone.",
            point_set(lambda c: word.pre_tokenize_str("a" + c)[0][0] == "a" + c),
        ),
        "RUST_SPACE": ("White space everywhere else.", point_set(lambda c: not white.pre_tokenize_str(c))),
        "NUMERIC": ("Digits.", point_set(lambda c: len(digits.pre_tokenize_str("a" + c)) == 2)),
        "CLEANED": (
            "What BertNormalizer drops as control characters.",
            point_set(lambda c: not cleaned.normalize_str(c)),
        ),
        "BERT_ACCENT": ("What BertNormalizer drops as accents.", point_set(lambda c: not accents.normalize_str(c))),
        "MARK": ("What StripAccents drops.", point_set(lambda c: not strip.normalize_str(c))),
        "PUNCTUATION": ("Punctuation and BertPreTokenizer.", point_set(lambda c: not punctuation.pre_tokenize_str(c))),
        "LOWER": ("Lower case: distance, zigzag difference.", lower_case()),
        "DECOMPOSITIONS": (
            "Distance, 4 * length + 2 * compatibility + composes again, code points of one step.",
            decompositions(),
        ),
        "CLUSTERS": ("Kinds of code points in grapheme clusters, as runs: 32 * length + kind.", clusters()),
        "COMBINING": ("Combining classes: distance, length, class.", combining_classes()),
    }
    assigned = "".join(map(chr, matched(r"[^\p{Cn}\p{Co}]")))
    for script in SCRIPTS:
        edges = deltas(boundaries(matched(rf"\p{{{script}}}", assigned)))
        found[f"SCRIPT_{script.upper()}"] = (f"Regular expressions: the script {script}.", numbers(edges))
    return found


def kotlin() -> str:
    """The text of UnicodeTables.kt."""
    lines = [
        "// Made by tests/support/android/unicode_tables.py from the tokenizers library; do not edit.",
        "package dev.edgekit.tokenizer",
        "",
        "/** Numbers of five bits a digit, the lowest first (see [Numbers]); sets are the distances between their edges. */",
        "internal object UnicodeTables {",
    ]
    for name, (meaning, text) in tables().items():
        lines += [f"    /** {meaning} */", f"    const val {name}: String ="]
        parts = [text[start : start + 108] for start in range(0, len(text), 108)]
        lines += [f'        "{part}"{" +" if index + 1 < len(parts) else ""}' for index, part in enumerate(parts)]
    names = "".join(f'\n        "{script.lower()}" to SCRIPT_{script.upper()},' for script in SCRIPTS)
    lines += ["", "    /** Scripts by their name in lower case. */"]
    lines += [f"    val SCRIPTS: Map<String, String> = mapOf({names}\n    )", "}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_text(kotlin(), encoding="utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")
