"""tokenizer.json in the configurations that tokenizers come in, some trained on prose, some made so that their ids show what each
step of the library did."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.support.android import tokenizer_lines
from tests.support.android.charsmap import charsmap

Config = dict[str, Any]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+",
    r"[一-龥぀-ゟ゠-ヿ]+|[\p{Han}&&[^一-龥]]|\p{Hiragana}+|[\p{Cyrillic}\p{Greek}]+|\p{^Latin}",
    r"\d+|\D\W|\w{2,4}|\S",
    r"(?<=[a-z])(?=[A-Z])|(?<!\s)\s|(?<=^|\n).",
    r"^.|.$|\Ax|\s\z",
    r"(?:ab|a)+?b|(?:[0-9]{3})+(?![0-9])|(?>a+)b|x*|(?:e|éé?)+",
    r"\x41|\x{1F468}|\u00e9|\t|\n{2,}|[\x00-\x1f\u200b-\u200f]",
    r"(a|b|c)*d|(?:[a-z]+[0-9]*){2,3}|[^[a-z][0-9]\s]",
    r"a{2,}b|\w{1,2}?x|e{,2}\S|(?:ab){2}+|[0-9]{1,3}+",
    r"\p{Zs}|\p{Cf}|\p{Co}|\p{Cn}+|\p{Sk}|\P{L}\p{M}*",
    r"",
)


def shown(
    normalizer: Config | None = None, pre_tokenizer: Config | None = None, added: list[Config] | None = None
) -> Config:
    """A tokenizer whose ids are the bytes of the text, those at the end of a word being others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(char + "</w>" for char in alphabet)]
    last: Config = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    steps = [last] if pre_tokenizer is None else [pre_tokenizer, last]
    return {
        "added_tokens": added or [],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": None,
        "post_processor": None,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [],
            "end_of_word_suffix": "</w>",
        },
    }


def splits() -> Iterator[tuple[str, Config]]:
    """Split by every pattern, with every behavior."""
    for index, (pattern, behavior, invert) in enumerate(itertools.product(PATTERNS, BEHAVIORS, (False, True))):
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
        yield f"split{index}", shown(pre_tokenizer=step)
    for behavior in BEHAVIORS:
        for text in (" ", "ab", "\u0301", "👩", "."):
            step = {"type": "Split", "pattern": {"String": text}, "behavior": behavior, "invert": False}
            yield f"split-{behavior}-{ord(text[0])}", shown(pre_tokenizer=step)


def words() -> Iterator[tuple[str, Config]]:
    """Every other pre-tokenizer."""
    simple = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
    steps: list[Config] = [{"type": name} for name in simple]
    steps += [{"type": "Punctuation", "behavior": behavior} for behavior in BEHAVIORS]
    steps += [{"type": "Punctuation"}, {"type": "CharDelimiterSplit", "delimiter": "e"}]
    steps += [{"type": "Digits", "individual_digits": each} for each in (False, True)]
    steps += [
        {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
        for prefix in (False, True)
        for regex in (False, True)
    ]
    meta: list[Config] = [
        {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme, "split": split}
        for replacement in ("▁", "_")
        for scheme in ("first", "never", "always")
        for split in (False, True)
    ]
    meta += [{"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}]
    for index, step in enumerate([*steps, *meta]):
        yield f"words{index}", shown(pre_tokenizer=step)
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    for index, step in enumerate(steps):
        both = {"type": "Sequence", "pretokenizers": [step, first]}
        yield f"first{index}", shown(pre_tokenizer=both)
    for name, config in normalized():
        yield f"first-{name}", {**config, "pre_tokenizer": shown(pre_tokenizer=first)["pre_tokenizer"]}


def normalized() -> Iterator[tuple[str, Config]]:
    """Every normalizer."""
    steps: list[Config] = [
        {"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")
    ]
    steps += [
        {
            "type": "BertNormalizer",
            "clean_text": clean,
            "handle_chinese_chars": chinese,
            "strip_accents": accents,
            "lowercase": lower,
        }
        for clean in (False, True)
        for chinese in (False, True)
        for accents in (None, False, True)
        for lower in (False, True)
    ]
    steps += [
        {"type": "Strip", "strip_left": left, "strip_right": right} for left in (False, True) for right in (False, True)
    ]
    steps += [{"type": "Prepend", "prepend": text} for text in ("▁", "ab ")]
    texts = ((" ", "▁"), ("a", ""), (" ", ""), ("e", "ee"), ("``", '"'))
    steps += [{"type": "Replace", "pattern": {"String": text}, "content": content} for text, content in texts]
    patterns = ((r" {2,}", "▁"), (r"\s+", " "), (r"[\u0300-\u036f]", ""), (r"^\s+", ""), (r"\p{L}", "xy"))
    steps += [{"type": "Replace", "pattern": {"Regex": text}, "content": content} for text, content in patterns]
    steps += [{"type": "Precompiled", "precompiled_charsmap": charsmap()}]
    steps += [
        {
            "type": "Sequence",
            "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, {"type": "NFC"}],
        },
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, steps[-11]]},
        {"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "NFKC"}, steps[-5]]},
        {"type": "Sequence", "normalizers": []},
    ]
    for index, step in enumerate(steps):
        yield f"normalized{index}", shown(normalizer=step)


def added() -> Iterator[tuple[str, Config]]:
    """Added tokens with every flag, before normalizers that change them."""
    contents = ("<s>", "and", "E", " ", "<|im_start|>", "é", "İ", "##", "the", "\n\n", "▁", "👩‍👩‍👧‍👦", "a b")
    flags = list(itertools.product((False, True), repeat=5))
    changes: tuple[Config | None, ...] = (
        None,
        {"type": "NFD"},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    )
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    for index in range(60):
        tokens = [
            {"id": place, "content": content, **dict(zip(names, flags[(7 * index + 5 * place) % 32], strict=True))}
            for place, content in enumerate(contents[index % 3 :])
            if content
            not in (("▁",) if index % len(changes) == 4 else (" ", "\n\n") if index % len(changes) == 3 else ())
        ]
        # What Strip would leave empty, the library refuses; of two tokens that become the same, it takes either.
        config = shown(changes[index % len(changes)], meta if index % 2 else None, tokens)
        yield f"added{index}", config


def trained() -> Iterator[tuple[str, Config]]:
    """Models trained on prose, with the settings that they come in."""
    yield from trained_bpe()
    yield from trained_unigram()
    yield from trained_words()


def train(model: models.Model, trainer: trainers.Trainer, splitter: pre_tokenizers.PreTokenizer | None) -> Config:
    tokenizer = Tokenizer(model)
    if splitter is not None:
        tokenizer.pre_tokenizer = splitter
    tokenizer.train_from_iterator(tokenizer_lines.prose()[:6000], trainer)
    config: Config = json.loads(tokenizer.to_str())
    return config


def trained_bpe() -> Iterator[tuple[str, Config]]:
    options: dict[str, Any] = {"vocab_size": 1500, "limit_alphabet": 60, "show_progress": False}
    special = ["<unk>", *BYTES]
    meta = pre_tokenizers.Metaspace()
    plain = train(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(special_tokens=special, **options), meta)
    plain["added_tokens"] = plain["added_tokens"][:1]
    fallback: Config = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    for bytes_too, fuse, ignore in itertools.product((False, True), repeat=3):
        settings = {"byte_fallback": bytes_too, "fuse_unk": fuse, "ignore_merges": ignore}
        yield (
            f"bpe-{bytes_too}-{fuse}-{ignore}",
            {**plain, "decoder": fallback, "model": {**plain["model"], **settings}},
        )
    whole = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    model = {**plain["model"], "byte_fallback": True, "fuse_unk": True}
    yield "bpe-whole", {**plain, "normalizer": whole, "pre_tokenizer": None, "decoder": fallback, "model": model}
    # Bytes that are no tokens, so that a character falls back only sometimes.
    some = {token: id for token, id in model["vocab"].items() if token not in BYTES[0xE2:0xF1]}
    yield "bpe-some-bytes", {**plain, "model": {**model, "vocab": renumbered(some), "fuse_unk": False}}
    yield "bpe-no-unk", {**plain, "model": {**plain["model"], "unk_token": None}}

    affixes = trainers.BpeTrainer(
        special_tokens=["<unk>"], continuing_subword_prefix="##", end_of_word_suffix="</w>", **options
    )
    words = train(
        models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>"),
        affixes,
        pre_tokenizers.WhitespaceSplit(),
    )
    yield "bpe-affixes", {**words, "decoder": {"type": "BPEDecoder", "suffix": "</w>"}}
    suffix = trainers.BpeTrainer(special_tokens=["<unk>"], end_of_word_suffix="</w>", **options)
    words = train(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), suffix, pre_tokenizers.BertPreTokenizer())
    merges = [" ".join(pair) for pair in words["model"]["merges"]]
    yield (
        "bpe-suffix",
        {**words, "decoder": {"type": "BPEDecoder", "suffix": "</w>"}, "model": {**words["model"], "merges": merges}},
    )

    level = train(
        models.BPE(), trainers.BpeTrainer(special_tokens=["<s>", "</s>"], **options), pre_tokenizers.ByteLevel()
    )
    level["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ends = {"sep": ["</s>", 1], "cls": ["<s>", 0]}
    for name in ("RobertaProcessing", "BertProcessing"):
        yield (
            f"bpe-{name}",
            {**level, "post_processor": {"type": name, **ends, "trim_offsets": True, "add_prefix_space": True}},
        )
    around = {"<s>": {"id": "<s>", "ids": [0, 1], "tokens": ["<s>", "</s>"]}}
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, *2 * [{"Sequence": {"id": "A", "type_id": 0}}]]
    template = {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": around}
    steps = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, template]
    yield "bpe-template", {**level, "post_processor": {"type": "Sequence", "processors": steps}}


def renumbered(vocabulary: dict[str, int]) -> dict[str, int]:
    return {token: index for index, token in enumerate(sorted(vocabulary, key=lambda token: vocabulary[token]))}


def trained_unigram() -> Iterator[tuple[str, Config]]:
    trainer = trainers.UnigramTrainer(vocab_size=1200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    config = train(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    config["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    vocabulary = config["model"]["vocab"]
    with_bytes = [*vocabulary, *([token, -9.0 - index / 7] for index, token in enumerate(BYTES))]
    charset = {"type": "Precompiled", "precompiled_charsmap": charsmap()}
    yield "unigram", config
    yield "unigram-charsmap", {**config, "normalizer": charset}
    yield "unigram-whole", {**config, "pre_tokenizer": None}
    yield "unigram-bytes", {**config, "model": {**config["model"], "vocab": with_bytes, "byte_fallback": True}}
    yield (
        "unigram-some-bytes",
        {**config, "model": {**config["model"], "vocab": with_bytes[:-20], "byte_fallback": True}},
    )
    # Ties between ways to cut, scores of many digits, and a token that is there twice.
    ties = [[token, -float(len(token))] for token, _ in vocabulary] + [["the", -2.5]]
    digits = [[token, score - 0.12345678901234567 / (index + 1)] for index, (token, score) in enumerate(vocabulary)]
    # Two tokens that score as much as one of both: the last bit decides, and the library does not read that bit as others do.
    rng = random.Random(0)
    single = {c: -rng.random() * 9 for c in "▁etaoinshrdlucmfwygpbvk"}
    both = [[a + b, single[a] + single[b]] for a in single for b in single]
    yield (
        "unigram-sums",
        {**config, "model": {**config["model"], "vocab": [["<unk>", 0.0], *map(list, single.items()), *both]}},
    )
    yield "unigram-ties", {**config, "model": {**config["model"], "vocab": ties}}
    yield "unigram-digits", {**config, "pre_tokenizer": None, "model": {**config["model"], "vocab": digits}}


def trained_words() -> Iterator[tuple[str, Config]]:
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, limit_alphabet=80, show_progress=False)
    piece = train(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer())
    ends = {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}
    for cleanup in (False, True):
        yield f"wordpiece-{cleanup}", {
            **piece,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": cleanup,
            },
            "post_processor": ends,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": cleanup},
        }  # fmt: skip
    yield "wordpiece-short", {**piece, "model": {**piece["model"], "max_input_chars_per_word": 6}}
    level = trainers.WordLevelTrainer(vocab_size=1500, special_tokens=["<unk>"], show_progress=False)
    yield "wordlevel", train(models.WordLevel(unk_token="<unk>"), level, pre_tokenizers.Whitespace())


SPACED = (
    "a the ▁a ▁ ▁▁ ##ing ## #### Ġa Ċ é Ã © ▁é . ? ! , ' n't 'm do not 's 've 're </w> a</w> b</w>c <0x41> <0xE2> <0x82> <0xAC> <0xFF> "
    "<0x+F> <0xZZ> <0xe2> <0x4> <0x411> <0xé> <0xF0> <0x9F> <0x91> <0xA9> <0xC3> <0xED> <0xA0> <0x80> 👩 ab aab bab \u0301 ▁'s don 't"
)
TOKENS = SPACED.split(" ")


def decoded() -> Iterator[tuple[str, Config]]:
    """Every decoder, behind a model whose words are tokens, so that lines of TOKENS give any sequence of them."""
    meta = [
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme} for scheme in ("first", "never", "always")
    ]
    replace = [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "bb"},
        {"type": "Replace", "pattern": {"Regex": "[a-b]+|'$"}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "-"},
    ]
    steps: list[Config | None] = [
        None, *meta, *replace, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "WordPiece", "prefix": "▁", "cleanup": False},
        {"type": "Strip", "content": "b", "start": 0, "stop": 1}, {"type": "Strip", "content": "▁", "start": 1, "stop": 0},
    ]  # fmt: skip
    steps.append({"type": "Sequence", "decoders": [meta[2], {"type": "ByteFallback"}, {"type": "Fuse"}, replace[0]]})
    for index, step in enumerate(steps):
        yield (
            f"decoded{index}",
            {
                "added_tokens": [
                    {
                        "id": 0,
                        "content": "the",
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                        "special": True,
                    },
                    {
                        "id": 1,
                        "content": "é",
                        "single_word": True,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": True,
                        "special": True,
                    },
                ],
                "normalizer": {"type": "Replace", "pattern": {"String": "é"}, "content": "e"},
                "pre_tokenizer": {"type": "WhitespaceSplit"},
                "post_processor": None,
                "decoder": step,
                "model": {
                    "type": "WordLevel",
                    "vocab": renumbered({token: index for index, token in enumerate(TOKENS)}),
                    "unk_token": "a",
                },
            },
        )
