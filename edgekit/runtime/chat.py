"""Chat templates as transformers renders them. They come with the model and are not trusted: they run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.errors import BundleError


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str], where: str) -> str:
    """The text of a conversation, ending where the assistant begins.

    ``special`` holds ``bos_token`` and the like. Raises BundleError, beginning with ``where``, when the template is
    broken, does what the sandbox forbids, or refuses the messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    environment.filters["tojson"] = _to_json
    plain = [{str(key): str(value) for key, value in message.items()} for message in messages]
    try:
        return environment.from_string(template).render(messages=plain, add_generation_prompt=True, **special)
    # A template is a program: beside TemplateError it may raise what any program may.
    except Exception as error:
        raise BundleError(f"{where}: the chat template failed: {' '.join(str(error).split())[:200]}") from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(style: str) -> str:
    return datetime.now().strftime(style)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """jinja2's own filter escapes HTML, which no chat model was trained on."""
    dump: Callable[..., str] = json.dumps
    return dump(value, ensure_ascii=ensure_ascii, **options)
