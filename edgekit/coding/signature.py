"""Ed25519 signatures (RFC 8032) of a pack's first bytes, which hold the sha256 of all that follows.

The package ``cryptography`` does it, and is asked for only here: ``pip install "edgekit[sign]"``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.coding.header import Front
from edgekit.errors import BundleError, RuntimeUnavailable, UsageError


def signer(key: Path) -> Callable[[bytes], bytes]:
    """What signs with the private key in a PEM file. Raises UsageError when it holds none."""
    private = _load(key, "load_pem_private_key", "private", password=None)
    return lambda text: bytes(private.sign(text))


def check_signature(front: Front, key: Path, where: str) -> None:
    """Raises BundleError unless the pack is signed by the owner of the public key in a PEM file."""
    public = _load(key, "load_pem_public_key", "public")
    from cryptography.exceptions import InvalidSignature

    if not front.signed:
        raise BundleError(f"{where}: is not signed, and {key} was to prove who made it; do not use this pack")
    try:
        public.verify(front.signature, front.prologue)
    except InvalidSignature:
        raise BundleError(
            f"{where}: its signature is not by the owner of {key}, or its head was changed; do not use this pack"
        ) from None


def _load(path: Path, function: str, kind: str, **options: Any) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise RuntimeUnavailable(
            'signatures need the package cryptography, which is not installed: pip install "edgekit[sign]"'
        ) from None
    wanted = {"private": ed25519.Ed25519PrivateKey, "public": ed25519.Ed25519PublicKey}[kind]
    try:
        key = getattr(serialization, function)(path.read_bytes(), **options)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give the file of an Ed25519 key") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, wanted):
        raise UsageError(
            f"{path}: holds no {kind} Ed25519 key in PEM without a password; "
            "openssl genpkey -algorithm ed25519 makes one, openssl pkey -pubout its public half"
        )
    return key
