"""Chat templates that take all memory or never end: each is stopped with a message, and the next conversation is answered."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from edgekit.errors import BundleError, RuntimeUnavailable
from edgekit.runtime import chat
from tests.support.android.chat_templates import HOSTILE

MEMORY = r"it needs more than 512 MiB of memory"
TIME = r"it does not end within [0-9.]+ s"
GROWING = [
    "{{ '%2000000000d' | format(1) }}", "{{ '%2000000000d' % 1 }}", "{{ 'x' * 10**10 }}", "{{ [1] * 10**10 }}", "{{ 'x' | center(10**10) }}",
    "{{ 'x'.zfill(10**10) }}", "{{ '{:>9000000000}'.format(1) }}", "{{ (1).to_bytes(10**10, 'big') }}", "{{ 'x' | indent(10**10) }}",
    "{{ [[1]] | tojson(indent=10**10) }}", "{{ range(99999) | batch(10**10, 0) | list }}",
    "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set x = 'x' * 10**8 %}{{ [x] * 99 | join }}{{ (x, x, x, x, x, x) | join }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(9) %}{% set ns.x = ns.x | replace('', 'y' * 10**6) %}{% endfor %}",
]  # fmt: skip
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) if range(99999) | list == 1 %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{{ [1] | slice(10**9) | list }}", "{{ 9 ** (9 ** 9) }}", "{{ lipsum(n=10**6) }}",
]  # fmt: skip


def render(template: str, content: str = "Hello") -> str:
    return chat.render(template, [{"role": "user", "content": content}], {"bos_token": "<s>"}, "somewhere")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits themselves are two seconds; what holds for less holds for them."""
    monkeypatch.setattr(chat, "SECONDS", 0.5)


@pytest.mark.parametrize("template", GROWING)
def test_a_template_that_takes_all_memory(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 60)  # on a busy machine filling the memory can take longer than two
    with pytest.raises(BundleError, match=f"^somewhere: the chat template failed: {MEMORY}$"):
        render(template)
    assert render("{{ messages[0].content }}") == "Hello"


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_does_not_end(impatient: None, template: str) -> None:
    with pytest.raises(BundleError, match=f"^somewhere: the chat template failed: ({TIME}|{MEMORY})$"):
        render(template)
    assert render("{{ messages[0].content }}") == "Hello"


@pytest.mark.parametrize("template", [template for template, _ in HOSTILE])
def test_what_is_hostile_to_the_device_does_no_harm_here(impatient: None, template: str) -> None:
    """Whether it is refused or answered, it ends."""
    with contextlib.suppress(BundleError):
        assert len(render(template)) <= 1 << 21
    assert render("{{ bos_token }}") == "<s>"


def test_a_text_that_is_too_long() -> None:
    with pytest.raises(BundleError, match="the text is longer than 2,097,152 characters"):
        render("{% set x = 'x' * 1999999 %}{{ x }}{{ x }}")
    assert len(render("{{ messages[0].content }}", "x" * (1 << 21))) == 1 << 21


def test_a_conversation_does_not_start_a_process_again() -> None:
    render("{{ bos_token }}")
    children = psutil.Process().children()
    for index in range(20):
        assert render("{{ messages[0].content }}\n", str(index)) == str(index)
    assert psutil.Process().children() == children


def test_a_process_that_died_is_started_again() -> None:
    render("{{ bos_token }}")
    for child in psutil.Process().children():
        if "edgekit.runtime.template" in child.cmdline():
            child.kill()
            child.wait()
    assert render("{{ bos_token }}") == "<s>"


def test_threads_get_their_own_answers() -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        wrong.extend(name for _ in range(20) if render("{{ messages[0].content }}", name) != name)

    threads = [threading.Thread(target=ask, args=(f"thread {index}",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_its_own() -> None:
    render("{{ bos_token }}")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(render, ("{{ messages[0].content }}", "forked")) == "forked"
    assert render("{{ messages[0].content }}", "parent") == "parent"


def test_ctrl_c_while_a_template_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer that nobody waited for is not taken for the next one."""

    def interrupt(self: chat._Process) -> float:
        raise KeyboardInterrupt

    render("{{ bos_token }}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(chat._Process, "_seconds", interrupt)
        render("{% for a in range(9999) %}{% endfor %}late")
    assert render("{{ messages[0].content }}") == "Hello"


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_process", None)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(
        RuntimeUnavailable, match="chat templates run in a process of their own, which cannot be started"
    ):
        render("{{ bos_token }}")


def test_nothing_runs_from_the_current_directory(tmp_path: Path) -> None:
    """A downloaded model's directory may hold a jinja2.py; a program that lies elsewhere does not look there."""
    for name in ("program", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "jinja2.py").write_text("raise SystemExit")
    program = tmp_path / "program" / "main.py"
    program.write_text("from edgekit.runtime.chat import render; print(render('{{ 1 + 1 }}', [], {}, 'x'))")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, str(program)]
    run = subprocess.run(command, cwd=tmp_path / "model", env=env, capture_output=True, text=True, check=False)
    assert run.stdout == "2\n", run.stderr
