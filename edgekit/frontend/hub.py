"""Fetch a checkpoint from the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import logging
from pathlib import Path

from edgekit.errors import SourceError

_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
# Other formats of the same weights that many repositories carry.
_UNWANTED = ("onnx/*", "openvino/*", "original/*", "consolidated*", "coreml/*")

log = logging.getLogger(__name__)


def download(hub_id: str, *, allow_pickle: bool) -> Path:
    """Directory of the newest snapshot of ``hub_id``; what the local cache already has is not fetched again.

    Raises SourceError when it cannot be fetched (offline, unknown, gated).
    """
    import huggingface_hub

    log.warning("'%s' is no file or directory here: taken for a Hugging Face hub id", hub_id)
    wanted = [*_WANTED, "*.bin"] if allow_pickle else list(_WANTED)
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)))
    # Network stacks raise dozens of unrelated types (httpx, requests, OSError); all mean that it is not here.
    except Exception as error:
        raise SourceError(
            f"{hub_id}: no such file or directory here, and as a Hugging Face hub id it cannot be fetched "
            f"({_reason(error)}); go online, or copy the checkpoint to this machine and give its directory"
        ) from error


def _reason(error: Exception) -> str:
    name = type(error).__name__
    if name in ("RepositoryNotFoundError", "GatedRepoError", "HfHubHTTPError"):
        return f"{name}: unknown, private or gated; check the id and log in with 'hf auth login'"
    return "offline" if name in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError") else name
