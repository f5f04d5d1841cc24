"""docs/architectures.md and its table are those of the installed transformers, and a sample of rows comes out again."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

import pytest
import transformers

from benchmarks import architectures
from tests.support.tooling import ROOT

PAGE = ROOT / "docs" / "architectures.md"
TABLE = architectures.read(ROOT / "docs" / "measured" / "architectures.csv")
SAMPLE = ["llama", "falcon", "bloom", "deepseek_v3", "lfm2", "mamba2", "qwen3_5_text", "recurrent_gemma", "reformer"]


def test_the_table_has_every_model_type() -> None:
    missing = sorted(set(architectures.types()) - set(TABLE))
    assert not missing, (
        f"transformers {transformers.__version__} has {', '.join(missing)}: run python -m benchmarks.architectures --quick --csv "
        "docs/measured/architectures.csv and bring docs/architectures.md up to date"
    )


def test_the_page_counts_as_the_table_does() -> None:
    counted = Counter(row["outcome"] for row in TABLE.values())
    page = dict(re.findall(r"^\| ([a-z ]+) \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.M))
    assert {outcome: int(count) for outcome, count in page.items()} == dict(counted)
    assert not counted["wrong"] and not counted["crash"]


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_comes_out_again(model_type: str) -> None:
    [row] = architectures.survey([model_type], partial(architectures.outcome, quick=True))
    stood = TABLE[model_type]
    assert row["outcome"] == stood["outcome"], row
    assert " ".join(row.get("why", "").split())[:60] == stood["why"][:60]
