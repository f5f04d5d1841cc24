"""The Android library's decoder of packs on a JVM: what Python packed comes back, what Python refuses is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.coding import pack, unpack
from tests.attacks.test_pack_attacks import CHUNKS, EDITS, OUTSIDE, first, parts, put, with_chunk
from tests.support.android import junit
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import linear_bundle
from tests.support.tooling import ROOT
from tests.support.wide_bundle import wide_bundle

VECTORS = ROOT / "tests" / "vectors" / "packs"


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good/NAME.edgepack and the bundle good/NAME, bad/NAME.edgepack and what is said, keys/me and keys/you."""
    folder = tmp_path_factory.mktemp("packs")
    for name in ("good", "bad", "keys"):
        (folder / name).mkdir()
    make_good(folder / "good", folder / "keys")
    make_bad(folder / "good" / "int4.edgepack", folder / "bad")
    return folder


def make_good(good: Path, keys: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ed25519

    for name in ("fp32", "int8", "int4", "t2"):
        pack(linear_bundle(good / name, name), good / f"{name}.edgepack")
    pack(decoder_bundle(good / "decoder"), good / "decoder.edgepack")
    old, new = wide_bundle(good / "wide"), wide_bundle(good / "delta", changed=0.02)
    pack(old, good / "wide.edgepack")
    pack(new, good / "delta.edgepack", base=old)
    (good / "delta.base").write_text("wide")
    for name, base in (("old", None), ("first-delta", "old")):
        vector = VECTORS / f"{name.removeprefix('first-')}.edgepack"
        shutil.copyfile(vector, good / f"{name}.edgepack")
        if base is not None:
            (good / f"{name}.base").write_text(base)
        unpack(vector, good / name, base=None if base is None else Bundle.open(good / base))
    for name in ("me", "you"):
        key = ed25519.Ed25519PrivateKey.generate()
        raw = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        (keys / f"{name}.pem").write_bytes(raw)
        public = key.public_key().public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
        (keys / name).write_bytes(public)
    pack(linear_bundle(good / "signed", "t2"), good / "signed.edgepack", sign=keys / "me.pem")


def make_bad(good: Path, bad: Path) -> None:
    """The attacks that Python is tested with, and bytes flipped with a sha256 that fits."""
    count = 0

    def add(made: Path, message: str = ".") -> None:
        nonlocal count
        made.rename(bad / f"{count}.edgepack")
        (bad / f"{count}.edgepack.txt").write_text(message, encoding="utf-8")
        count += 1

    evil = bad / "evil"
    for name in OUTSIDE:
        listed, chunks = parts(good)
        first(listed)["path"] = name
        add(put(evil, listed, chunks), "is not a plain relative path inside the bundle")
    for edit, _ in EDITS:
        listed, chunks = parts(good)
        edit(listed)
        add(put(evil, listed, chunks))
    for packed, _ in CHUNKS:
        add(with_chunk(good, bad / "in" / "c", packed, 1 << 20))
    data = good.read_bytes()
    for size in (0, 10, 60, 500, len(data) - 1):
        evil.write_bytes(data[:size])
        add(evil, "ends inside its head|ends at byte")
    evil.write_bytes(data + b"x")
    add(evil, "its head lists")
    random = np.random.default_rng(0)
    listed, chunks = parts(good)
    sizes = [sum(chunk["packed"] for chunk in file["chunks"]) for file in listed["files"]]
    place = next(i for i, file in enumerate(listed["files"]) if file["path"] == "model.onnx.data")
    start = sum(sizes[:place])
    for _ in range(120):
        changed = bytearray(chunks[start : start + sizes[place]])
        changed[int(random.integers(len(changed)))] ^= int(random.integers(1, 256))
        add(with_chunk(good, bad / "in" / "c", bytes(changed)), "chunk 0 of|does not have the sha256 of the manifest")


def test_kotlin_unpacks_what_python_packed(packs: Path) -> None:
    test = junit.TESTS / "dev/edgekit/pack/UnpackTest.kt"
    assert "OK (6 tests)" in junit.run(junit.engine_tests(), [test], "-Xmx256m", f"-Dedgekit.packs={packs}")
    shutil.rmtree(packs / "bad")
