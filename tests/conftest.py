"""What all tests share: the same examples on every run, and no network."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

settings.register_profile("edgekit", derandomize=True, deadline=None, print_blob=True, database=None)
settings.load_profile("edgekit")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: small networks are slowed down by a second one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
