"""``make demo``: SmolLM2-135M exported three ways and edgekit's own small ternary model, verified, measured and talking."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.demo_models import BUILD, smollm2
from tools.train_ternary import SHIPPED

RECIPES = ("fp32", "int8", "int4")
PROMPT, VERSE = "What is the capital of France?", "HAMLET\n"
OUT = BUILD.parent / "demo"


def edgekit(*arguments: str) -> dict[str, Any]:
    """Runs the command line as a user would; its JSON. A failed check is shown in the table, anything else ends the demo."""
    print(f"$ edgekit {' '.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "edgekit", *arguments, "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode not in (0, 1) or not run.stdout.strip():
        raise SystemExit(run.returncode or 1)
    found: dict[str, Any] = json.loads(run.stdout)
    if "error" in found:
        raise SystemExit(found["error"]["message"])
    return found


def main() -> None:
    """Prepares the model once, then runs export, verify, bench and generate on it."""
    began = time.perf_counter()
    model = smollm2()
    prepared = time.perf_counter() - began
    bundles = {recipe: OUT / f"smollm2-{recipe}" for recipe in RECIPES} | {"ternary": OUT / "own-ternary"}
    rows = []
    for recipe, bundle in bundles.items():
        own = recipe == "ternary"
        start = time.perf_counter()
        source = _shown(SHIPPED / "ternary" if own else model)
        made = edgekit("export", source, "--recipe", recipe, "-o", _shown(bundle), "--force")
        seconds = time.perf_counter() - start
        checked = edgekit("verify", _shown(bundle))
        said = edgekit("generate", _shown(bundle), VERSE if own else PROMPT, "--max-new-tokens", "24")
        rows.append((recipe, made, seconds, checked, said))
    measured = edgekit("bench", *[_shown(b) for b in bundles.values()])
    print(f"\nSmolLM2-135M-Instruct (its float weights are a dequantized Q4_1 file), {_machine(measured)}")
    print("ternary: 3.4 million weights trained on Shakespeare (docs/ternary-training.md)")
    print(
        f"{'recipe':<7} {'MB':>6} {'export s':>8} {'parity dB':>9} {'perplexity':>10} {'×orig.':>6} {'verdict':>7} {'prefill':>8} {'decode':>7} tok/s"
    )
    for recipe, made, seconds, checked, _ in rows:
        speed = {r["phase"]: r for r in measured["rows"] if Path(r["bundle"]).name == bundles[recipe].name}
        cells = [_speed(speed.get(phase)) for phase in ("prefill", "decode")]
        accuracy = checked["accuracy"]
        print(
            f"{recipe:<7} {made['bytes'] / 1e6:>6.1f} {seconds:>8.1f} {checked['parity']['sqnr_db']:>9.1f} {accuracy['perplexity']:>10.2f} "
            f"{accuracy['perplexity_ratio']:>6.3f} {checked['verdict']:>7} {cells[0]:>8} {cells[1]:>7}"
        )
    if not all(row["valid"] for row in measured["rows"]):
        print("! this machine was too busy to be measured: edgekit bench says what disturbed it")
    print(f"\n> {PROMPT} (ternary: {VERSE.strip()})")
    for recipe, _, _, _, said in rows:
        print(f"{recipe}: {' '.join(said['text'].split())}")
    total = time.perf_counter() - began
    print(f"\n{total:.0f} s, {prepared:.0f} of them unpacking the model; bundles in {_shown(OUT)}")
    if not all(row[3]["passed"] for row in rows):
        raise SystemExit(1)


def _shown(path: Path) -> str:
    """Relative to the current directory where possible: what a user would type."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _speed(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['tokens_per_second']:.0f}" + ("" if row["valid"] else "!")


def _machine(measured: dict[str, Any]) -> str:
    machine = measured.get("machine", {})
    return f"{machine.get('processor', machine.get('cpu', 'this machine'))}, 1 thread"


if __name__ == "__main__":
    main()
