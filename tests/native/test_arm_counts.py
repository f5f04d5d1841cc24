"""Instructions of whole products on emulated ARM, beside the table in the documents: they may not grow unseen."""

from __future__ import annotations

from pathlib import Path

from benchmarks.operators import arm_counts
from tests.support.tooling import need

MOST = 1.03
"""A count may differ by as much from the table before it has to be written anew."""


def test_counts_are_those_of_the_table(tmp_path: Path) -> None:
    need("qemu-aarch64-static")
    counted = list(arm_counts.rows(arm_counts.build(tmp_path / "repeat_operator")))
    table = arm_counts.read()
    assert [row.of for row in counted] == [row.of for row in table]
    off = [
        f"{' '.join(map(str, now.of))}: {now.instructions} instructions, {then.instructions} in the table"
        for now, then in zip(counted, table, strict=True)
        if not 1 / MOST <= now.instructions / then.instructions <= MOST
    ]
    assert not off, "; ".join(off) + ". If that is meant: python -m benchmarks.operators.arm_counts --write"
