"""Where a language model's time goes, by operator: ONNX Runtime's own profile of a token and of a prompt.

    python -m benchmarks.llm.node_times build/llm/edgekit-2b4t [--threads 1] [--tokens 128]

Times of the nodes are those of runs with the profiler, which costs about 3 microseconds a node; ``without`` is the same
run's time without it. Operators that read a weight are listed by the bytes of their largest one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np

from edgekit.bundle import Bundle
from edgekit.runtime.decoder import Decoder

RUNS = {1: 20, 0: 2}
"""Runs measured: of a single token, and of a prompt."""
LEAST = 0.05  # milliseconds: less is counted together


def main() -> None:
    """Profiles decoding after a prompt, and the prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128, help="of the prompt")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    text = np.resize(bundle.vectors()[0][1]["input.input_ids"], options.tokens)
    for count in (1, 0):
        seconds, _ = _run(bundle, options.threads, text, count, profile=False)
        _, profile = _run(bundle, options.threads, text, count, profile=True)
        what = f"one token after {len(text)}" if count else f"a prompt of {len(text)}"
        print("\n".join(_table(what, seconds, profile, RUNS[count])))


def _run(bundle: Bundle, threads: int, text: np.ndarray, count: int, profile: bool) -> tuple[float, str]:
    """Median seconds of the runs, and the profile of them and of one run before."""
    runs = RUNS[count]
    decoder = Decoder(bundle, threads, max_length=len(text) + runs, profile=profile)
    decoder.run(text[None])
    times = []
    for index in range(runs):
        if not count:
            decoder.reset()
        began = time.perf_counter()
        decoder.run(text[None] if not count else text[None, index : index + 1])
        times.append(time.perf_counter() - began)
    return median(times), decoder.session.profile_text() if profile else ""


def _table(what: str, seconds: float, profile: str, runs: int) -> list[str]:
    events = json.loads(profile)
    first = next(e for e in events if e["name"] == "model_run")
    spent: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    for event in events:
        if not event["name"].endswith("_kernel_time") or event["ts"] < first["ts"] + first["dur"]:
            continue
        weight = int(event["args"]["parameter_size"])
        name = event["args"]["op_name"] + (f" {weight / 1e6:.1f} MB" if weight > 100_000 else "")
        spent[name] += event["dur"]
        nodes[name] += 1
    lines = [
        f"{what}: {seconds * 1e3:.1f} ms without profiler, nodes {sum(spent.values()) / runs / 1e3:.1f} ms with it"
    ]
    rest = 0.0
    for name, microseconds in spent.most_common():
        milliseconds = microseconds / runs / 1e3
        if milliseconds < LEAST:
            rest += milliseconds
            continue
        lines.append(f"  {name:<44} {milliseconds:>9.2f} ms  × {nodes[name] / runs:.0f}")
    return [*lines, f"  {'all others':<44} {rest:>9.2f} ms"]


if __name__ == "__main__":
    main()
