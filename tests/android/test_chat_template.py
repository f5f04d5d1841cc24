"""Chat templates in Kotlin against jinja2 as transformers sets it up: the same text, or a refusal where jinja2 refuses."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BundleError
from edgekit.runtime import chat
from tests.android.test_tokenizer import loaded, write_config
from tests.support.android import chat_templates, tokenizer_configs, tokenizer_kotlin
from tools.demo_models import minilm, smollm2

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
MODELS = ("smollm2", "llama3", "qwen3", "gemma3", "deepseek_v3")
ODD = (
    "",
    " ",
    "Hello, world!",
    "\n two lines \n\n and spaces\t\n",
    "\u00a0\u2003 wide \x1c\x85 spaces \u200b",
    "{{ messages }} {% raise %} {# none #} }} %} \\n ' \" \\",
    "<think>\nfirst\n</think>\n\nthen",
    "<tool_response>\nx\n</tool_response>",
    "<|im_end|><|eot_id|><end_of_turn><s></s>",
    "👩‍👩‍👧‍👦 é e\u0301 ÅSTRÖM ſß ﬁ İ \U0001f3f4 𝒜",
    "None",
    "a\r\nb\rc",
    "&amp; <b>\"bold\"</b> 'x'",
)
ROLES = ("system", "user", "assistant", "tool", "User", "")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations(count: int) -> list[list[dict[str, str]]]:
    """First those that templates expect, of every length with and without system, then any."""
    rng = random.Random(0)
    found = [[message("user", text)] for text in ODD] + [
        [message("system", text), message("user", text)] for text in ODD
    ]
    for system, turns in itertools.product((False, True), range(1, 6)):
        roles = ["system"] * system + ["user" if index % 2 == 0 else "assistant" for index in range(turns)]
        found += [[message(role, rng.choice(ODD)) for role in roles] for _ in range(8)]
    while len(found) < count:
        found.append([message(rng.choice(ROLES), rng.choice(ODD)) for _ in range(rng.randrange(6))])
    return found[:count]


def rendered(folder: Path, jobs: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """What Kotlin makes of pairs of template and messages."""
    given = [{"template": template, "messages": messages, "special": SPECIAL} for template, messages in jobs]
    (folder / "jobs").write_text(json.dumps(given), encoding="utf-8")
    tokenizer_kotlin.java("chat", folder / "jobs", folder / "result")
    return list(json.loads((folder / "result").read_text(encoding="utf-8")))


def expected(template: str, messages: list[dict[str, str]]) -> dict[str, str]:
    """What Python makes of them."""
    try:
        return {"text": chat.render(template, messages, SPECIAL, "template")}
    except BundleError as error:
        return {"error": f"BundleException: {error}"}


def template_of(name: str) -> str:
    directory = smollm2() if name == "smollm2" else tokenizer_kotlin.packaged(name)
    template = loaded(directory).chat_template
    assert template is not None
    return template


@pytest.mark.parametrize("name", [*MODELS, *chat_templates.WHOLE])
def test_templates_of_models_give_the_same_text(tmp_path: Path, name: str) -> None:
    template = template_of(name) if name in MODELS else chat_templates.WHOLE[name]
    talks = conversations(200)
    answers = rendered(tmp_path, [(template, messages) for messages in talks])
    texts = 0
    for messages, answer in zip(talks, answers, strict=True):
        right = expected(template, messages)
        texts += "text" in right
        head, _, why = right.get("error", "").partition("failed: ")
        if "text" in right or why in template:
            assert answer == right, messages
        else:  # Python's own words for an error are not all Kotlin's
            assert answer.get("error", "").startswith(head), messages
    print(f"{name}: {len(talks)} conversations, {texts} with a text")
    assert texts >= 50


def test_every_part_of_the_language_does_the_same(tmp_path: Path) -> None:
    messages = [message("system", " Be brief. "), message("user", "Ünï 👍🏽\n"), message("assistant", "it's <b>")]
    answers = rendered(tmp_path, [(template, messages) for template in chat_templates.SMALL])
    wrong = []
    for template, answer in zip(chat_templates.SMALL, answers, strict=True):
        right = expected(template, messages)
        same = answer == right if "text" in right else answer.get("error", "").startswith("BundleException: template: ")
        if not same:
            wrong.append(f"{template!r}\n  Python {right}\n  Kotlin {answer}")
    assert not wrong, f"{len(wrong)} of {len(answers)} differ\n" + "\n".join(wrong[:20])


def test_random_templates_do_the_same(tmp_path: Path) -> None:
    messages = [message("user", "Hé 👍 "), message("assistant", "x")]
    templates = [chat_templates.random_template(random.Random(seed)) for seed in range(4000)]
    answers = rendered(tmp_path, [(template, messages) for template in templates])
    texts, refused, wrong = 0, 0, []
    for template, answer in zip(templates, answers, strict=True):
        right = expected(template, messages)
        texts += "text" in right and answer == right
        if answer.get("error", "").startswith("UnsupportedException: "):
            refused += 1
        elif answer != right if "text" in right else "text" in answer:
            wrong.append(f"{template!r}\n  Python {right}\n  Kotlin {answer}")
    assert not wrong, f"{len(wrong)} of {len(answers)} differ\n" + "\n".join(wrong[:20])
    print(f"{texts} the same text, {refused} refused, {len(answers) - texts - refused} wrong in both")
    assert texts > 1000
    assert refused < 1500


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    answers = rendered(tmp_path, [(template, [message("user", "x")]) for template, _ in chat_templates.UNKNOWN])
    for (template, what), answer in zip(chat_templates.UNKNOWN, answers, strict=True):
        error = f"UnsupportedException: template: the chat template uses {what}, which is not supported on this device"
        assert answer == {"error": error}, template


def test_a_hostile_template_ends(tmp_path: Path) -> None:
    answers = rendered(tmp_path, [(template, [message("user", "x")]) for template, _ in chat_templates.HOSTILE])
    for (template, what), answer in zip(chat_templates.HOSTILE, answers, strict=True):
        pattern = f"BundleException: template: the chat template failed: .*{re.escape(what)}"
        assert re.match(pattern, answer.get("error", "")), (template[:100], str(answer)[:300])


def chatted(folder: Path, directory: Path, talks: list[Any]) -> list[dict[str, Any]]:
    """The ids that Kotlin makes of conversations."""
    (folder / "talks").write_text(json.dumps(talks), encoding="utf-8")
    tokenizer_kotlin.java("conversations", directory, folder / "talks", folder / "result")
    return list(json.loads((folder / "result").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", MODELS)
def test_conversations_have_the_same_ids(tmp_path: Path, name: str) -> None:
    directory = smollm2() if name == "smollm2" else tokenizer_kotlin.packaged(name)
    tokenizer = loaded(directory)
    talks = conversations(150)
    for messages, answer in zip(talks, chatted(tmp_path, directory, talks), strict=True):
        try:
            assert answer == {"ids": tokenizer.chat(messages)}, messages
        except BundleError as error:
            head = str(error).partition("the chat template failed")[0]
            assert answer["error"].startswith("BundleException: ")
            assert str(directory) in head


@pytest.mark.parametrize(
    ("config", "file"),
    [
        ({"chat_template": "config {{ messages[0].content }}"}, None),
        ({"chat_template": "config"}, "file {{ messages[0].content }}"),
        ({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "listed {{ bos_token }}"}]}, None),
        ({"chat_template": "{{ bos_token }}{{ eos_token }}", "bos_token": {"content": "ab"}, "eos_token": "c"}, None),
    ],
)  # fmt: skip
def test_the_template_is_found_where_python_finds_it(tmp_path: Path, config: dict[str, Any], file: str | None) -> None:
    directory = write_config(tmp_path / "model", tokenizer_configs.shown())
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if file is not None:
        (directory / "chat_template.jinja").write_text(file, encoding="utf-8")
    talk = [message("user", "Hello")]
    assert chatted(tmp_path, directory, [talk]) == [{"ids": loaded(directory).chat(talk)}]


def test_a_model_without_template_says_so(tmp_path: Path) -> None:
    [answer] = chatted(tmp_path, minilm(), [[message("user", "Hello")]])
    assert answer["error"].startswith(f"UnsupportedException: {minilm()}: the model has no chat template; ")
