"""Whole language models: edgekit's bundles against llama.cpp and onnxruntime-genai, from one checkpoint each.

    .venv/bin/python benchmarks/llm.py [--json] [--output FILE.json] [--quick] [--rounds 5] [--threads 1 2]
        [--models 2b4t smollm2 smollm2-int8] [--lengths 128 512 4000] [--engines edgekit llama.cpp onnxruntime-genai] [--work build/llm]

Makes what is missing (see ``models.py``), then measures with the protocol of ``edgekit bench``: a process for each engine,
warmed up, all taking turns round by round (A B C, then C B A), medians over all samples; ratios are medians over rounds with
their 95 % interval. llama.cpp needs ``pip install -e '.[llama]'`` and is left out without it. All of it takes about half an hour on two quiet cores;
with a busy neighbour, llama.cpp's threads wait for each other and it can take hours.

A row's ``phase`` and ``tokens``:

- ``prefill``: a prompt of ``tokens`` tokens on an empty cache, logits of the last one.
- ``decode``: one token at a time, the likeliest fed back, beginning with ``tokens`` tokens in the cache.
- ``first_token_cold``, ``first_token_warm``: ``seconds`` from starting a fresh process to the first token after a prompt of
  ``tokens``, interpreter and imports included; cold with all files of the model dropped from the page cache before,
  ``read_mb`` says how much was then fetched. Medians of some repetitions, at the largest number of threads.

``bytes_per_token`` (decode only) is what a token has to read: every stored weight that a step reads whole, a tied head once,
without tables that are looked up by row, plus keys and values of the positions in the cache, on average over the tokens
measured (``costs.py`` has the rules). ``share_of_read_bandwidth`` is that times tokens a second, as a share of a plain read
(``benchmarks/operators/streams.c``) of a mapped file of 1 GiB with as many threads, taken before and after the rounds.

Memory is in MiB. ``rss_anon_mb`` and ``rss_file_mb`` are those of the measured process after its last token;
``rss_anon_base_mb`` is the private memory of its interpreter and libraries before the model is loaded, ``cache_mb`` keys and
values of all positions it holds by then, ``anon_over_cache_mb`` the private memory beyond those. A process that has run a
prompt of 512 keeps the buffers for it, so the rows of each ``tokens`` come from processes of their own.

``shared``: two live processes of one engine on the same files; see ``Sharing`` in ``processes.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.llm.models import EDGEKIT, GENAI, LLAMA, MODELS, Contender, bundle_of, contenders, say
from benchmarks.llm.processes import MIB, FirstToken, Sharing, first_tokens, start
from benchmarks.operators.limits import Limits
from edgekit.benchmark.machine import Disturbance, describe, usable_cores
from edgekit.benchmark.protocol import Series, measure
from edgekit.benchmark.rows import compare, row
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError

LENGTHS = {128: 64, 512: 16, 4000: 16}
"""Tokens of the prompt, and how many are decoded after it in a round."""
DEFAULT_LENGTHS = [128, 512]
SHORT_PROMPT = 16
READ_BYTES = 1 << 30
READ_PASSES = 7
PACKAGES = ("edgekit", "onnxruntime", "onnxruntime-genai", "llama-cpp-python")


def main() -> None:
    """Makes, measures, prints, writes."""
    options = _options()
    try:
        result = _result(options)
    except EdgekitError as error:
        sys.exit(str(error))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else "\n".join(table(result)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the JSON here too")
    parser.add_argument("--quick", action="store_true", help="1 round, prompts of 128 tokens: to see that it works")
    parser.add_argument("--rounds", type=int, default=None, help="default 5, 1 with --quick")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--engines", nargs="+", default=[EDGEKIT, LLAMA, GENAI], choices=[EDGEKIT, LLAMA, GENAI])
    parser.add_argument("--lengths", type=int, nargs="+", default=None, choices=[*LENGTHS], help="of prompts")
    parser.add_argument("--work", type=Path, default=Path("build/llm"), help="where models are made and kept")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.lengths = options.lengths or (DEFAULT_LENGTHS[:1] if options.quick else DEFAULT_LENGTHS)
    options.repetitions = 1 if options.quick else 3
    if not 1 <= min(options.threads) <= max(options.threads) <= usable_cores():
        parser.error(f"--threads {options.threads}: from 1 to {usable_cores()}, the cores of this machine")
    return options


def _result(options: argparse.Namespace) -> dict[str, Any]:
    parts: dict[str, list[dict[str, Any]]] = {key: [] for key in ("rows", "ratios", "shared", "models")}
    bandwidth = Bandwidth(options.work)
    for model in options.models:
        members = contenders(model, options.engines, options.work)
        if not members:
            continue
        text = Bundle.open(bundle_of(model, options.work)).vectors()[0][1]["input.input_ids"]
        parts["models"] += [_made(member) for member in members]
        for threads in options.threads:
            for length in options.lengths:
                rows, ratios = _measured(members, np.resize(text, length).tolist(), threads, options.rounds, bandwidth)
                parts["rows"] += rows
                parts["ratios"] += ratios
        rows, shared = _first(
            members, np.resize(text, SHORT_PROMPT).tolist(), max(options.threads), options.repetitions
        )
        parts["rows"] += rows
        parts["shared"] += shared
    return {"machine": {**asdict(describe()), "read_gb_per_s": bandwidth.found, "versions": _versions()}, **parts}


class Bandwidth:
    """Plain reads of a mapped file; ``found`` has GB/s by number of threads, the median of all passes of this run."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._file = work / "read.bin"
        if not self._file.is_file():
            np.ones(READ_BYTES, np.uint8).tofile(self._file)
        with tempfile.TemporaryDirectory() as scratch:
            self._limits = Limits(Path(scratch))
        self._passes: dict[int, list[float]] = {}

    def look(self, threads: int) -> None:
        """Some more passes."""
        read = self._limits.reader(self._file, threads)
        read(1)
        for _ in range(READ_PASSES):
            began = time.perf_counter()
            read(1)
            self._passes.setdefault(threads, []).append(READ_BYTES / (time.perf_counter() - began) / 1e9)

    @property
    def found(self) -> dict[int, float]:
        return {threads: median(passes) for threads, passes in self._passes.items()}


def _measured(
    members: Sequence[Contender], prompt: list[int], threads: int, rounds: int, bandwidth: Bandwidth
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and ratios of one prompt length and number of threads."""
    where = f"{members[0].model}, {len(prompt)} tokens, {_threads(threads)}"
    bandwidth.look(threads)
    with ExitStack() as stack:
        workers = [start(member, threads, prompt, LENGTHS[len(prompt)], stack) for member in members]
        series, disturbance = measure(workers, rounds, lambda what, share: say(f"{where}: {what}, {share:.0%}"))
    bandwidth.look(threads)
    read = bandwidth.found[threads]
    rows = []
    for member, worker, found in zip(members, workers, series, strict=True):
        memory = _memory(member, found, worker.base_mb, len(prompt))
        for phase in found.rounds:
            rows.append({**_row(member, found, phase, threads, len(prompt), disturbance, read), **memory})
    known = {"model": members[0].model, "tokens": len(prompt)}
    return rows, [{**known, **_ratio(asdict(ratio))} for ratio in _compared(series, threads)]


def _row(
    member: Contender, found: Series, phase: str, threads: int, tokens: int, disturbance: Disturbance, read: float
) -> dict[str, Any]:
    stats = row(found, phase, threads, tokens, disturbance)
    each = member.cost.token_bytes(tokens + LENGTHS[tokens] / 2) if phase == "decode" else None
    assert stats.tokens_per_second is not None
    return {
        "engine": member.engine,
        "model": member.model,
        "phase": phase,
        "tokens": tokens,
        "threads": threads,
        "tokens_per_second": stats.tokens_per_second,
        "spread": stats.spread,
        "bytes_per_token": each,
        "share_of_read_bandwidth": None if each is None else each * stats.tokens_per_second / 1e9 / read,
        "read_gb_per_s": read,
        **{
            k: getattr(stats, k) for k in ("p50_ms", "p90_ms", "p99_ms", "samples", "rounds", "valid", "invalid_reason")
        },
        **{k: getattr(stats, k) for k in ("load_ms", "first_run_ms", "kernel")},
    }


def _memory(member: Contender, found: Series, base: float | None, tokens: int) -> dict[str, Any]:
    cache = member.cost.cache_bytes * (tokens + LENGTHS[tokens]) / MIB
    return {
        "rss_anon_mb": found.private_mb,
        "rss_file_mb": found.file_mb,
        "rss_peak_mb": found.peak_mb,
        "rss_anon_base_mb": base,
        "cache_mb": cache,
        "anon_over_cache_mb": None if found.private_mb is None else found.private_mb - cache,
    }


def _compared(series: Sequence[Series], threads: int) -> list[Any]:
    return compare(series, threads) if series[0].name == EDGEKIT else []


def _ratio(ratio: dict[str, Any]) -> dict[str, Any]:
    return {"engine": ratio.pop("bundle"), **ratio}


def _first(
    members: Sequence[Contender], prompt: list[int], threads: int, repetitions: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of first tokens, cold and warm, and what two processes share; engines take turns."""
    found: dict[str, list[tuple[FirstToken, FirstToken, Sharing]]] = {member.engine: [] for member in members}
    for index in range(repetitions):
        for member in members if index % 2 == 0 else reversed(members):
            say(f"{member.model}, first token: {member.engine}")
            found[member.engine].append(first_tokens(member, threads, prompt))
    rows, shared = [], []
    for member in members:
        cold, warm, sharing = zip(*found[member.engine], strict=True)
        known = {"engine": member.engine, "model": member.model}
        for phase, times in (("first_token_cold", cold), ("first_token_warm", warm)):
            middle = {key: median(asdict(t)[key] for t in times) for key in asdict(times[0])}
            facts = {"phase": phase, "tokens": len(prompt), "threads": threads, "tokens_per_second": None}
            empty = {"bytes_per_token": None, "share_of_read_bandwidth": None}
            rows.append({**known, **facts, **empty, **middle, "samples": [t.seconds for t in times]})
        last = sharing[-1]
        share = min(1.0, 2 * (1 - last.proportional_mb / last.mapped_mb)) if last.mapped_mb else None  # rounded pages
        shared.append({**known, **asdict(last), "shared": share})
    return rows, shared


def _made(member: Contender) -> dict[str, Any]:
    return {
        "engine": member.engine,
        "model": member.model,
        "file_bytes": member.weights.stat().st_size,
        **asdict(member.cost),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def table(result: dict[str, Any]) -> Iterator[str]:
    """For people: the machine, the models, then rows by model, phase and threads, and ratios beside them."""
    machine = result["machine"]
    reads = ", ".join(f"{speed:.1f} GB/s ({_threads(n)})" for n, speed in machine["read_gb_per_s"].items())
    yield f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['features'])}), {machine['system']}"
    yield f"a plain read of memory: {reads}; " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    yield ""
    kernels = {(r["model"], r["engine"]): r["kernel"] for r in result["rows"] if "kernel" in r}
    for made in result["models"]:
        formats = ", ".join(f"{name} × {count}" for name, count in made["formats"].items())
        weights = f"{made['weight_bytes'] / 1e6:.0f} MB of weights and {made['cache_bytes'] / 1e3:.1f} kB a position"
        yield f"{made['model']} {made['engine']}: file {made['file_bytes'] / 1e6:.0f} MB; a token reads {weights}; {formats}"
        yield f"    {kernels[made['model'], made['engine']]}"
    ratios = {(r["model"], r["phase"], r["tokens"], r["threads"], r["than"]): r for r in result["ratios"]}
    yield from _speeds([row for row in result["rows"] if row["tokens_per_second"] is not None], ratios)
    yield from _starts([row for row in result["rows"] if "seconds" in row], result["shared"])


def _threads(number: int | str) -> str:
    return f"{number} thread{'' if int(number) == 1 else 's'}"


def _speeds(rows: Sequence[dict[str, Any]], ratios: dict[tuple[Any, ...], dict[str, Any]]) -> Iterator[str]:
    yield (
        f"\n{'':<31} {'tok/s':>8} {'spread':>7} {'MB/token':>9} {'of read':>8} {'anon':>6} {'base':>6} {'cache':>6} "
        f"{'file':>6}  edgekit is (95 %)"
    )
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for found in sorted(rows, key=lambda r: (r["model"], r["phase"], r["threads"], r["tokens"])):
        cells.setdefault(tuple(found[k] for k in ("model", "phase", "tokens", "threads")), []).append(found)
    for cell, members in cells.items():
        model, phase, tokens, threads = cell
        yield f"{model} {phase}, {tokens} tokens, {_threads(threads)}"
        for found in members:
            yield _speed(found, ratios.get((*cell, found["engine"])))
            if not found["valid"]:
                yield f"    INVALID: {found['invalid_reason']}"


def _speed(found: dict[str, Any], ratio: dict[str, Any] | None) -> str:
    read = found["bytes_per_token"]
    reading = " " * 18 if read is None else f"{read / 1e6:>9.1f} {found['share_of_read_bandwidth']:>8.0%}"
    memory = " ".join(f"{found[k]:>6.0f}" for k in ("rss_anon_mb", "rss_anon_base_mb", "cache_mb", "rss_file_mb"))
    line = f"  {found['engine']:<29} {found['tokens_per_second']:>8.1f} {found['spread']:>7.1%} {reading} {memory}"
    if ratio is None:
        return line
    return f"{line}  {ratio['times_as_fast']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) × as fast"


def _starts(rows: Sequence[dict[str, Any]], shared: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"\n{'':<31} {'seconds':>8} {'loading':>8} {'prompt':>8} {'read MB':>8} {'anon':>6} {'file':>6}"
    for model, phase in dict.fromkeys((r["model"], r["phase"]) for r in rows):
        members = [r for r in rows if (r["model"], r["phase"]) == (model, phase)]
        yield f"{model} {phase}, {members[0]['tokens']} tokens, {_threads(members[0]['threads'])}"
        for r in members:
            times = " ".join(f"{r[key]:>8.2f}" for key in ("seconds", "load_seconds", "prompt_seconds"))
            yield f"  {r['engine']:<29} {times} {r['read_mb']:>8.0f} {r['rss_anon_mb']:>6.0f} {r['rss_file_mb']:>6.0f}"
    yield "\ntwo processes on the same files:"
    for s in shared:
        share = "nothing stays mapped" if s["shared"] is None else f"{s['shared']:.0%} shared"
        yield f"  {s['model']} {s['engine']}: {s['mapped_mb']:.0f} MB of the weights' file mapped in each, {share}"


if __name__ == "__main__":
    main()
