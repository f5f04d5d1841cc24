"""The Kotlin tokenizer against the tokenizers library: the same ids and the same text, for every line."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer as Fast

from edgekit.bundle import Bundle
from edgekit.runtime.tokenizer import Stream, Tokenizer
from tests.support.android import tokenizer_configs, tokenizer_lines, unicode_tables
from tests.support.android.tokenizer_kotlin import PACKAGES, java, packaged
from tools import kotlin
from tools.demo_models import minilm, smollm2

REAL_LINES = 102_000


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    with path.open("wb") as file:
        for text in texts:
            data = text.encode()
            file.write(struct.pack(">i", len(data)) + data)
    return path


BROKEN = "the library panics"


@dataclass
class Answer:
    """What was made of one line."""

    ids: list[int]
    plain: list[int]
    whole: str
    text: str


def read_answers(path: Path) -> Iterator[Answer | None]:
    """None for a line that cannot be tokenized. Raises ValueError with the message when the tokenizer was not loaded."""
    data = path.read_bytes()
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from(">i", data, at - 4)[0])

    def ids(count: int) -> list[int]:
        nonlocal at
        at += 4 * count
        return list(struct.unpack_from(f">{count}i", data, at - 4 * count))

    def text() -> str:
        nonlocal at
        length = number()
        at += length
        return data[at - length : at].decode()

    if number() == 0:
        raise ValueError(text())
    while at < len(data):
        count = number()
        yield None if count < 0 else Answer(ids(count), ids(number()), text(), text())


def loaded(directory: Path) -> Tokenizer:
    return Tokenizer(cast(Bundle, SimpleNamespace(directory=directory)))


def expected(directory: Path, texts: Sequence[str]) -> Iterator[Answer | str | None]:
    """What edgekit's own tokenizer makes of the texts in Python: None where the library refuses, BROKEN where it panics."""
    tokenizer = loaded(directory)
    library = Fast.from_file(str(directory / "tokenizer.json"))
    for text in texts:
        try:
            ids = tokenizer.encode(text)
        except BaseException as error:  # the library raises bare Exception, and for a panic what is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            yield None if isinstance(error, Exception) else BROKEN
            continue
        whole = library.decode(ids, skip_special_tokens=False)
        yield Answer(ids, tokenizer.encode(text, special=False), whole, tokenizer.decode(ids))


def write_config(target: Path, config: dict[str, Any]) -> Path:
    """A directory with tokenizer.json."""
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps({"version": "1.0", **config}), encoding="utf-8")
    return target


def compare(tmp_path: Path, jobs: dict[Path, Sequence[str]]) -> int:
    """Tokenizes the lines of every directory in Kotlin and in Python; the number of lines that were the same in both."""
    rows = []
    for index, (directory, texts) in enumerate(jobs.items()):
        lines = write_texts(tmp_path / f"{index}.texts", texts)
        rows.append(f"{directory}\t{lines}\t{tmp_path / f'{index}.result'}")
    (tmp_path / "jobs").write_text("\n".join(rows), encoding="utf-8")
    with ThreadPoolExecutor() as pool:  # both at the same time
        running = pool.submit(java, "parity", tmp_path / "jobs", options=[*kotlin.BRIEF, "-Xmx3g"])
        wanted = [list(expected(directory, texts)) for directory, texts in jobs.items()]
        running.result()
    wrong: list[str] = []
    compared = 0
    for index, ((directory, texts), rights) in enumerate(zip(jobs.items(), wanted, strict=True)):
        answers = list(read_answers(tmp_path / f"{index}.result"))
        assert len(answers) == len(texts), directory
        for text, right, answer in zip(texts, rights, answers, strict=True):
            compared += right != BROKEN
            if right not in (answer, BROKEN):
                wrong.append(f"{directory.name}: {text!r}\n  Python {right}\n  Kotlin {answer}")
    assert not wrong, f"{len(wrong)} lines differ\n" + "\n".join(wrong[:: len(wrong) // 8 + 1])
    return compared


def special_texts(directory: Path) -> list[str]:
    tokens = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    return [token["content"] for token in tokens[:300]]


@pytest.mark.parametrize("name", ["smollm2", "minilm", *PACKAGES])
def test_real_tokenizers_are_the_same_on_a_hundred_thousand_lines(tmp_path: Path, name: str) -> None:
    directory = {"smollm2": smollm2, "minilm": minilm}[name]() if name not in PACKAGES else packaged(name)
    lines = tokenizer_lines.lines(REAL_LINES, special_texts(directory))
    assert compare(tmp_path, {directory: lines}) >= 100_000


@pytest.mark.parametrize("kind", ["splits", "words", "normalized", "added", "trained"])
def test_every_step_is_the_same_in_every_configuration(tmp_path: Path, kind: str) -> None:
    jobs: dict[Path, Sequence[str]] = {}
    for seed, (name, config) in enumerate(getattr(tokenizer_configs, kind)()):
        directory = write_config(tmp_path / name, config)
        jobs[directory] = tokenizer_lines.lines(3000 if kind == "trained" else 300, special_texts(directory), seed)
    # The library panics where it loses its place in the text, which Replace and Precompiled make it do.
    assert compare(tmp_path, jobs) > 0.97 * sum(map(len, jobs.values()))


def test_every_decoder_is_the_same_for_any_tokens(tmp_path: Path) -> None:
    rng = random.Random(0)
    jobs: dict[Path, Sequence[str]] = {}
    for name, config in tokenizer_configs.decoded():
        lines = [" ".join(rng.choices(tokenizer_configs.TOKENS, k=rng.randrange(12))) for _ in range(3000)]
        jobs[write_config(tmp_path / name, config)] = lines
    compare(tmp_path, jobs)


def test_the_tables_are_those_of_the_library() -> None:
    assert unicode_tables.TARGET.read_text(encoding="utf-8") == unicode_tables.kotlin(), (
        "python -m tests.support.android.unicode_tables"
    )


def test_text_comes_in_the_same_pieces(tmp_path: Path) -> None:
    for name, directory in (("smollm2", smollm2()), ("minilm", minilm()), ("llama2", packaged("llama2"))):
        texts = tokenizer_lines.lines(600, special_texts(directory))
        lines = write_texts(tmp_path / f"{name}.texts", texts)
        java("stream", directory, lines, tmp_path / "pieces")
        answers = json.loads((tmp_path / "pieces").read_text(encoding="utf-8"))
        tokenizer = loaded(directory)
        for text, answer in zip(texts, answers, strict=True):
            ids = tokenizer.encode(text)
            assert answer == [pieces(tokenizer, ids, 0), pieces(tokenizer, ids, len(ids) // 2)], (name, text)


def pieces(tokenizer: Tokenizer, ids: list[int], start: int) -> list[str]:
    stream = Stream(tokenizer, ids[:start])
    return [*(stream.push(token) for token in ids[start:]), stream.rest()]


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "add_prefix_space": False}
BEGIN = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "B", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}


REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("normalizer", {"type": "Precompiled2"}, 'Unsupported: normalizer: the normalizer "Precompiled2"'),
    ("normalizer", {"type": "Prepend", "prepend": ""}, "Unsupported: normalizer: prepending nothing"),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "a*"}, "content": ""}, "Unsupported: normalizer: replacing where"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!"}, "Bundle: normalizer: \"precompiled_charsmap\" is no base64"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/w=="}, "Bundle: normalizer: \"precompiled_charsmap\" has a"),
    ("normalizer", {"type": "Strip"}, 'Bundle: normalizer: no flag "strip_left"'),
    ("normalizer", {}, 'Bundle: normalizer: no text "type"'),
    ("pre_tokenizer", {"type": "UnicodeScripts"}, 'Unsupported: pre_tokenizer: the pre-tokenizer "UnicodeScripts"'),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "X"}]}, 'Unsupported: pre_tokenizer pretokenizers[0]: the pre-tokenizer "X"'),
    ("pre_tokenizer", META, "Bundle: pre_tokenizer: add_prefix_space contradicts prepend_scheme"),
    *(
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, f"Unsupported: {what}")
        for regex, what in (
            (r"a\b", "the escape '\\b' at"),
            (r"(a)\1", "the escape '\\1' at"),
            (r"(?<name>a)", "the group '(?<na' at"),
            (r"(?i:ss)", "'ss' where case is ignored at"),
            (r"(?i:é)", "a letter beyond ASCII where case is ignored at"),
            (r"(?i:\p{L})", "a property or class where case is ignored at"),
            (r"\p{Emoji}", "the property '\\p{Emoji}' at"),
            (r"[[:alpha:]]", "a POSIX class at"),
            (r"(?<=a+)b", "a look-behind of varying length"),
            (r"a{3}?", "'?' after a fixed number at"),
            (r"(a", "'(' without ')' at"),
        )
    ),
    ("decoder", {"type": "CTC"}, 'Unsupported: decoder: the decoder "CTC"'),
    ("decoder", {"type": "BPEDecoder", "suffix": ""}, "Unsupported: decoder: an empty suffix"),
    ("post_processor", {"type": "X"}, 'Unsupported: post_processor: the post-processor "X"'),
    ("post_processor", BEGIN, "Unsupported: post_processor: a second sequence"),
    ("model", {"type": "X", "vocab": {}}, 'Unsupported: model: the model "X"'),
    ("model", {"type": "BPE", "vocab": {}, "merges": [], "dropout": 0.1}, "Unsupported: model: dropout"),
    ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}, 'Bundle: model: the merge of "a" and "b" needs "b"'),
    ("model", {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}, "Unsupported: model: one id, 0, for two tokens"),
    ("model", {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}, 'Bundle: model: the id of "a" is 1099511627776'),
    ("model", {"type": "Unigram", "vocab": [["a"]]}, 'Bundle: model: "vocab"[0] is not a token and its score'),
    ("model", {"type": "Unigram", "vocab": [["a", 0]], "unk_id": 1}, 'Bundle: model: "unk_id" is 1 of 1 tokens'),
    ("model", {"type": "WordLevel", "vocab": {"a": 0}}, 'Bundle: model: no text "unk_token"'),
    ("added_tokens", [{"content": "a"}], "Bundle: added_tokens[0]: no flag"),
    ("version", "2.0", 'Unsupported: version "2.0" of the format'),
)  # fmt: skip
BROKEN_FILES = (None, "", "{", "[]", '{"version": "1.0", "version": "1.0"}', "{}")


def refusals(folder: Path, directories: Sequence[Path]) -> list[str]:
    """Why the tokenizers of ``directories`` are not loaded."""
    texts, results = write_texts(folder / "texts", ["a"]), [folder / f"{i}.result" for i in range(len(directories))]
    jobs = zip(directories, results, strict=True)
    (folder / "jobs").write_text("\n".join(f"{directory}\t{texts}\t{result}" for directory, result in jobs))
    java("parity", folder / "jobs")
    said = []
    for result in results:
        with pytest.raises(ValueError, match="Exception: ") as caught:
            list(read_answers(result))
        said.append(str(caught.value))
    return said


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    configs = [{**tokenizer_configs.shown(), part: value} for part, value, _ in REFUSED]
    directories = [write_config(tmp_path / f"{i}", config) for i, config in enumerate(configs)]
    for (part, value, error), said in zip(REFUSED, refusals(tmp_path, directories), strict=True):
        kind, _, what = error.partition(": ")
        assert re.match(f"{kind}Exception: .*{re.escape(what)}", said), (part, value, said)


def test_a_broken_file_is_said_to_be_broken(tmp_path: Path) -> None:
    directories = [tmp_path / f"{i}" for i in range(len(BROKEN_FILES))]
    for directory, text in zip(directories, BROKEN_FILES, strict=True):
        directory.mkdir()
        if text is not None:
            (directory / "tokenizer.json").write_text(text)
    for text, said in zip(BROKEN_FILES, refusals(tmp_path, directories), strict=True):
        assert re.match(r"BundleException: .*; export ", said), (text, said)
