"""Kotlin's side of edgekit/spec is what tools/make_kotlin.py writes."""

from __future__ import annotations

from tools.make_kotlin import TARGET, kotlin


def test_what_is_committed_is_what_the_tool_writes() -> None:
    assert TARGET.read_text(encoding="utf-8") == kotlin(), "run python -m tools.make_kotlin"
