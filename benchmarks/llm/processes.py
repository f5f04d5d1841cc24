"""Worker processes of ``llm.py`` and what the system says about them: memory, pages read, pages shared."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.llm.models import Contender
from edgekit.benchmark.protocol import TimedProcess

MIB = 1 << 20


class Recorded:
    """A process that keeps the private memory (MiB) of its interpreter and libraries, before the model is loaded."""

    base_mb: float | None = None

    def __init__(self, process: TimedProcess) -> None:
        self.name, self.pid, self._process = process.name, process.pid, process

    def ask(self, what: str) -> dict[str, Any]:
        """As :class:`TimedProcess`."""
        answer = self._process.ask(what)
        if what == "load":
            self.base_mb = answer["before"]["private"]
        return answer


def start(contender: Contender, threads: int, prompt: Sequence[int], new_tokens: int, stack: ExitStack) -> Recorded:
    """A fresh process for one contender, ended with ``stack``."""
    return Recorded(contender.start(threads, prompt, new_tokens, stack))


@dataclass(frozen=True)
class FirstToken:
    """The first token of a fresh process; memory in MiB, right after it."""

    seconds: float  # from starting the interpreter to the token: everything a user waits for
    load_seconds: float  # of it, making the session or the context
    prompt_seconds: float  # of it, running the prompt
    read_mb: float  # fetched from storage
    rss_anon_mb: float
    rss_file_mb: float
    rss_anon_base_mb: float | None


@dataclass(frozen=True)
class Sharing:
    """Pages of the weights' file in one of two live processes that run the same files, MiB.

    ``proportional_mb`` counts a page that two processes map as half a page: where it is half of ``mapped_mb``, all is shared.
    """

    mapped_mb: float
    proportional_mb: float


def first_tokens(contender: Contender, threads: int, prompt: Sequence[int]) -> tuple[FirstToken, FirstToken, Sharing]:
    """Cold (no page of its files in memory), then warm while the first process lives, and what the two share."""
    _drop_pages(contender.files())
    with ExitStack() as stack:
        _, cold = _first_token(contender, threads, prompt, stack)
        worker, warm = _first_token(contender, threads, prompt, stack)
        return cold, warm, _sharing(worker.pid, contender.weights)


def _drop_pages(files: Sequence[Path]) -> None:
    """Takes files out of the page cache; pages that a process maps would stay."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a page that is not written yet stays
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _first_token(
    contender: Contender, threads: int, prompt: Sequence[int], stack: ExitStack
) -> tuple[Recorded, FirstToken]:
    began = time.perf_counter()
    worker = start(contender, threads, prompt, 1, stack)
    load, run = worker.ask("load")["ms"] / 1e3, worker.ask("first")["ms"] / 1e3
    seconds = time.perf_counter() - began
    status = _fields(worker.pid, "status")
    anonymous, mapped = (int(status[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))
    fetched = int(_fields(worker.pid, "io")["read_bytes"]) / MIB
    return worker, FirstToken(seconds, load, run, fetched, anonymous, mapped, worker.base_mb)


def _sharing(pid: int, file: Path) -> Sharing:
    """Sums over all mappings of ``file``."""
    mapped = proportional = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if " " in key:  # a new mapping: its addresses, rights, ..., and file
            inside = line.endswith(str(file.resolve()))
        elif inside and key == "Rss":
            mapped += int(value.split()[0])
        elif inside and key == "Pss":
            proportional += int(value.split()[0])
    return Sharing(mapped / 1024, proportional / 1024)


def _fields(pid: int, name: str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
