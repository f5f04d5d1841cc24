"""What is made once and kept in build/, however many processes ask for it at the same time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Whoever makes ``path`` is alone; other processes that ask for the same one wait. The lock lies beside it."""
    import fcntl  # Windows has none, and imports this module to say that its tests need Linux

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made(directory: Path, recipe: str, fill: Callable[[Path], None]) -> Path:
    """``directory``, filled by ``fill`` unless it was filled from the same ``recipe`` before.

    It appears whole or not at all, and processes that ask at the same time wait for the one that makes it.
    """
    mark, digest = directory / "made-from.sha256", hashlib.sha256(recipe.encode()).hexdigest()
    if _is(mark, digest):
        return directory
    with alone(directory):
        if not _is(mark, digest):
            partial = directory.with_name(f"{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial)
            (partial / mark.name).write_text(digest, encoding="utf-8")
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
    return directory


def _is(mark: Path, digest: str) -> bool:
    return mark.is_file() and mark.read_text(encoding="utf-8") == digest
