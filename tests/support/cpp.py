"""C++ programs for tests, linked from objects that are compiled once: a planted fault costs the sources that see it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.support.tooling import ROOT

OBJECTS = ROOT / "build" / "cache" / "objects"
"""Object files, by the sha256 of all that they were made of."""
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def program(compiler: Sequence[str], folder: Path, sources: Sequence[Path], made: Path) -> Path:
    """``made``, linked from ``sources``, whose headers are beside them or in ``folder``."""
    objects = [_object([*compiler, f"-I{folder}"], [source.parent, folder], source) for source in sources]
    _run([*compiler, *map(str, objects), "-o", str(made)])
    return made


def _object(compiler: Sequence[str], folders: Sequence[Path], source: Path) -> Path:
    options = [word for word in compiler if not word.startswith("-I")]
    seen = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in _read(source.name, folders)}
    recipe = repr((_version(*options), sorted(seen.items())))
    target = OBJECTS / f"{source.stem}-{hashlib.sha256(recipe.encode()).hexdigest()}.o"
    if not target.is_file():
        OBJECTS.mkdir(parents=True, exist_ok=True)
        partial = f"{target}.{os.getpid()}"
        _run([*compiler, "-c", str(source), "-o", partial])
        os.replace(partial, target)
    return target


def _read(name: str, folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """A source and every header of ours that it includes, also by way of others, as name and text."""
    waiting, found = [name], {name}
    while waiting:
        name = waiting.pop()
        text = next(path for folder in folders if (path := folder / name).is_file()).read_text(encoding="utf-8")
        yield name, text
        more = set(INCLUDE.findall(text)) - found
        found |= more
        waiting += more


@cache
def _version(*compiler: str) -> str:
    return f"{compiler} {_run([*compiler, '--version'])}"


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
