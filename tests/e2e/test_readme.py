"""The README's examples, as written: the shell lines once, the Python twice in one process; and links that lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tooling import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "build/models/smollm2"
"""Where the README's model lies; here the small one that the repository carries stands in its place."""


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(MODEL).parent.mkdir(parents=True)
    Path(MODEL).symlink_to(ROOT / "tools" / "own_ternary" / "ternary")


def test_the_shell_lines() -> None:
    (session,) = blocks(README, "console")
    lines = [line.removeprefix("$ ") for line in session.splitlines() if line.startswith("$ ")]
    assert lines[0] == f"MODEL={MODEL}" and len(lines) == 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["sh", "-ec", "\n".join(lines)], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("build/smollm2-int4: "), "named as the user did"
    shown = [line for line in session.splitlines() if not line.startswith("$ ")]
    for words in ("text-generation, recipe int4", "original perplexity", "verdict: PASS", "smollm2.edgepack: "):
        assert words in run.stdout and any(words in line for line in shown)


def test_the_python_example_twice(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks(README, "python")
    for _ in range(2):
        exec(compile(program, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")]
    assert [p for p in pages if p != "README.md" and not p.startswith("adr/") and f"({p}" not in index] == []


def test_commands_in_documents_name_modules_that_exist() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for module in re.findall(r"python -m ((?:benchmarks|tools)\.[\w.]+)", page.read_text(encoding="utf-8")):
            place = ROOT / module.rstrip(".").replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), f"{page.name}: {module}"
