"""Renders chat templates in a process of its own, which edgekit.runtime.chat starts and may end at any time.

A template is a program that comes with a model. jinja2's sandbox keeps it away from Python's objects and files, not
from memory and time: a single ``'x' * 10**10`` or ``'%9999999999d' % 1`` takes all there is. So the system bounds this
process.

Each line of stdin is a JSON object of ``template``, ``messages`` and ``special``; each line of stdout one of ``text``
or ``error``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_TEXT = 1 << 21
"""Characters; more is no conversation that a device could answer. Kotlin's interpreter has the same limit."""
MEMORY = 512 << 20
"""Bytes of address space."""
SECONDS = 2
"""Of processor time for one conversation; usual templates take a thousandth."""


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(4)
def _program(template: str) -> Template:
    """A template, set up as transformers does it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _text(request: dict[str, Any]) -> str:
    program = _program(request["template"])
    text = program.render(messages=request["messages"], add_generation_prompt=True, **request["special"])
    if len(text) > LONGEST_TEXT:
        raise TemplateError(f"the text is longer than {LONGEST_TEXT:,} characters")
    return text


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(style: str) -> str:
    return datetime.now().strftime(style)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """jinja2's own filter escapes HTML, which no chat model was trained on."""
    dump: Callable[..., str] = json.dumps
    return dump(value, ensure_ascii=ensure_ascii, **options)


def _answer(line: bytes) -> dict[str, str]:
    try:
        return {"text": _text(json.loads(line))}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MiB of memory"}
    # A template is a program: beside TemplateError it may raise what any program may.
    except Exception as error:
        return {"error": " ".join(str(error)[:1000].split())[:200] or type(error).__name__}


def _bound(more_seconds: int) -> None:
    """Asks the system to end this process when it takes more memory, or time from now on; not every system does."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        seconds = int(used.ru_utime + used.ru_stime) + more_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Answers until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    for line in sys.stdin.buffer:
        _bound(2 * SECONDS)  # in case the process that watches is gone
        answer = _answer(line)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
