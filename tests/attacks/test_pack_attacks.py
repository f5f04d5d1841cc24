"""Packs as a stranger might send them: a message that says where, bounded memory, and nothing written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.coding import header, pack, segments, streams, unpack
from edgekit.coding.bits import number
from edgekit.errors import BundleError, CheckFailed, EdgekitError, UsageError
from tests.support.tiny_models import linear_bundle

Edit = Callable[[dict[str, Any]], object]
MEMORY = 96 << 20


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    pack(linear_bundle(folder / "b", "int4"), folder / "m.edgepack")
    return folder / "m.edgepack"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where the bundle would go; whatever happens, nothing else comes into being."""
    (tmp_path / "in").mkdir()
    yield tmp_path / "in" / "c"
    assert sorted(path.name for path in tmp_path.iterdir()) in (["evil", "in"], ["in"])
    assert list((tmp_path / "in").iterdir()) == []


def parts(good: Path) -> tuple[dict[str, Any], bytes]:
    """The head and the chunks of a pack."""
    data = good.read_bytes()
    with good.open("rb") as file:
        front = header.read_front(file, "")
    return json.loads(json.dumps(dataclasses.asdict(front.head))), data[front.size :]


def put(path: Path, listed: dict[str, Any] | str, chunks: bytes, **prologue: int) -> Path:
    """A pack with this head, whose first bytes fit unless told otherwise."""
    text = (listed if isinstance(listed, str) else json.dumps(listed)).encode()
    packed = zlib.compress(text)
    values = {"version": 1, "signed": 0, "packed": len(packed), "whole": len(text), **prologue}
    first = header.PROLOGUE.pack(header.MAGIC, *values.values(), hashlib.sha256(packed).digest())
    path.write_bytes(first + packed + chunks)
    return path


def refused(pack_file: Path, target: Path, message: str, kind: type[EdgekitError] = BundleError, **more: Any) -> None:
    with pytest.raises(kind) as refusal:
        unpack(pack_file, target, **more)
    text = str(refusal.value)
    assert re.search(message, text), text
    assert "\n" not in text


def edited(good: Path, target: Path, edit: Edit) -> Path:
    listed, chunks = parts(good)
    edit(listed)
    return put(target.parent.parent / "evil", listed, chunks)


def with_chunk(good: Path, target: Path, packed: bytes, size: int | None = None, path: str = "model.onnx.data") -> Path:
    """A pack in which one file is one chunk of these bytes, with a sha256 that fits."""
    listed, chunks = parts(good)
    before = 0
    for file in listed["files"]:
        length = sum(chunk["packed"] for chunk in file["chunks"])
        if file["path"] == path:
            chunk = {
                "bytes": size or file["bytes"],
                "packed": len(packed),
                "sha256": hashlib.sha256(packed).hexdigest(),
            }
            file["bytes"], file["chunks"] = chunk["bytes"], [chunk]
            chunks = chunks[:before] + packed + chunks[before + length :]
            break
        before += length
    return put(target.parent.parent / "evil", listed, chunks)


# Names


def first(listed: dict[str, Any]) -> dict[str, Any]:
    """A file that is not the manifest."""
    file: dict[str, Any] = listed["files"][1]
    return file


OUTSIDE = ["../x", "a/../../x", "/etc/x", "..", "", "C:x", "a\\b", "nul", "a\0b", "x.", "a//b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_outside_of_the_bundle(good: Path, target: Path, name: str) -> None:
    refused(edited(good, target, lambda h: first(h).update(path=name)), target, "is not a plain relative path inside")


@pytest.mark.parametrize("name", ["MODEL.onnx.data", "Manifest.json", "model.onnx.data"])
def test_a_name_that_stands_twice(good: Path, target: Path, name: str) -> None:
    refused(edited(good, target, lambda h: first(h).update(path=name)), target, "is listed twice")


def test_a_file_in_a_file(good: Path, target: Path) -> None:
    name = "model.onnx.data/x"
    refused(edited(good, target, lambda h: first(h).update(path=name)), target, "lies in what is a file itself")


def test_files_that_the_manifest_does_not_list(good: Path, target: Path) -> None:
    for edit in (lambda h: first(h).update(path="other"), lambda h: first(h).update(sha256="0" * 64)):
        refused(edited(good, target, edit), target, "its head and its manifest list different files")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_in_the_way(good: Path, tmp_path: Path) -> None:
    """What --resume finds beside the target may have been put there by somebody else."""
    with good.open("rb") as file:
        front = header.read_front(file, "")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    kept = tmp_path / f".c.unpacking-{front.id[:16]}"
    kept.mkdir()
    (kept / "manifest.json").symlink_to(victim)
    refused(good, tmp_path / "c", "is a link or no file at all", resume=True)
    (kept / "manifest.json").unlink()
    (kept / "vectors").symlink_to(tmp_path)
    refused(good, tmp_path / "c", "is a link or no directory", resume=True)
    kept.rename(tmp_path / "moved")
    kept.symlink_to(tmp_path / "moved")
    refused(good, tmp_path / "c", "is a link or no directory", resume=True)
    assert victim.read_text() == "precious" and sorted(p.name for p in tmp_path.iterdir())[-2:] == ["moved", "victim"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_target_that_is_a_link_to_what_is_no_bundle(good: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    (tmp_path / "c").symlink_to(tmp_path / "precious")
    refused(good, tmp_path / "c", "which is no part of a bundle", UsageError, force=True)
    assert (tmp_path / "precious" / "file").read_text() == "precious"


# Numbers

EDITS: list[tuple[Edit, str]] = [
    (lambda h: first(h).update(bytes=first(h)["bytes"] + 1), "its chunks do not add up to its"),
    (lambda h: first(h)["chunks"].append(first(h)["chunks"][0]), "its chunks do not add up to its"),
    (lambda h: first(h)["chunks"].clear(), "its chunks do not add up to its"),
    (lambda h: first(h)["chunks"][0].update(bytes=-5), "a chunk of -5 bytes"),
    (lambda h: first(h)["chunks"][0].update(bytes=5 << 20), "a chunk of 5,242,880 bytes packed into"),
    (lambda h: first(h)["chunks"][0].update(bytes=1 << 70), "a chunk of 1,180,591,620,717,411,303,424 bytes"),
    (lambda h: first(h)["chunks"][0].update(packed=-1), "packed into -1;"),
    (lambda h: first(h)["chunks"][0].update(packed=1 << 40), "packed into no more than an eighth above that"),
    (lambda h: first(h)["chunks"][0].update(packed=0), "refers to a base version that is not there"),
    (lambda h: first(h)["chunks"][0].update(base=0), "refers to a base version that is not there"),
    (lambda h: first(h)["chunks"][0].update(base=1.5), "is not of bytes, packed, sha256 and base"),
    (lambda h: first(h)["chunks"][0].update(sha256="x"), "a sha256 is not 64 hexadecimal digits"),
    (lambda h: first(h)["chunks"][0].update(offset=5), "is not of bytes, packed, sha256 and base"),
    (lambda h: first(h).pop("chunks"), "missing key 'chunks'"),
    (lambda h: h.update(base="x"), "the head's base is no sha256"),
    (lambda h: h["files"].reverse(), "the head does not begin with manifest.json"),
    (lambda h: h["files"].clear(), "the head does not begin with manifest.json"),
    (lambda h: first(h)["chunks"].extend(first(h)["chunks"] * 70_000), "lists more than 65,536 files or chunks"),
    (lambda h: h.update(base="0" * 64), "holds only what differs from an older version"),
]


@pytest.mark.parametrize("number_of_edit", range(len(EDITS)))
def test_a_head_that_does_not_fit(good: Path, target: Path, number_of_edit: int) -> None:
    edit, message = EDITS[number_of_edit]
    kind = UsageError if "older version" in message else BundleError
    refused(edited(good, target, edit), target, message, kind)


def test_a_bundle_that_no_disk_can_hold(good: Path, target: Path) -> None:
    """4 MiB chunks of one value are a few bytes each."""

    def bomb(listed: dict[str, Any]) -> None:
        listed["files"][1]["chunks"] = [{"bytes": 4 << 20, "packed": 6, "sha256": "0" * 64}] * 60_000
        listed["files"][1]["bytes"] = 60_000 * (4 << 20)

    listed, chunks = parts(good)
    bomb(listed)
    evil = put(target.parent.parent / "evil", listed, chunks)
    refused(evil, target, "bytes, its head lists|ends at byte")
    with evil.open("r+b") as file:
        file.truncate(evil.stat().st_size + 60_000 * 6 - first(parts(good)[0])["chunks"][0]["packed"])
    refused(evil, target, r"251,6\d\d,\d\d\d,\d\d\d bytes needed for the bundle", CheckFailed)


def test_a_manifest_that_is_too_large(good: Path, target: Path) -> None:
    def grow(listed: dict[str, Any]) -> None:
        chunk = {"bytes": 4 << 20, "packed": 6, "sha256": "0" * 64}
        listed["files"][0].update(bytes=17 * (4 << 20), chunks=[chunk] * 17)

    listed, _ = parts(good)
    grow(listed)
    total = sum(chunk["packed"] for file in listed["files"] for chunk in file["chunks"])
    refused(put(target.parent.parent / "evil", listed, bytes(total)), target, "no manifest is that large")


@pytest.mark.parametrize(
    ("prologue", "message"),
    [
        ({"version": 2}, "pack version 2, this edgekit reads 1; pip install"),
        ({"signed": 2}, "impossible sizes in its first bytes"),
        ({"whole": 1 << 31}, "impossible sizes in its first bytes"),
        ({"packed": 1 << 31}, "impossible sizes in its first bytes"),
        ({"packed": 1 << 23}, "ends inside its head"),
        ({"whole": 5}, "the head is damaged"),
        ({"whole": 50_000}, "the head is damaged"),
        ({"packed": 40}, "the head's sha256 is not what its first bytes say"),
        ({"signed": 1}, "the head's sha256 is not what its first bytes say"),
    ],
)
def test_first_bytes_that_do_not_fit(good: Path, target: Path, prologue: dict[str, Any], message: str) -> None:
    refused(put(target.parent.parent / "evil", *parts(good), **prologue), target, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "the head is no JSON"), ("[" * 100_000, "the head is no JSON"), ("[]", "expected a mapping, got list"),
        ('{"name": "", "base": "", "files": [], "name": ""}', "the head is no JSON"),
        ('{"name": 1, "base": "", "files": []}', "expected str, got int"), ("\ud83d".encode("utf-8", "replace").decode(), "no JSON"),
    ],
)  # fmt: skip
def test_a_head_that_is_no_head(good: Path, target: Path, text: str, message: str) -> None:
    refused(put(target.parent.parent / "evil", text, b""), target, message)


def test_what_is_no_pack(target: Path) -> None:
    evil = target.parent.parent / "evil"
    for data, message in ((b"", "ends inside its head"), (b"x" * 99, "not an edgekit pack; give a file that `edgekit")):
        evil.write_bytes(data)
        refused(evil, target / "not" / "even" / "a" / "folder", message)


def test_a_head_that_grows_without_end(target: Path) -> None:
    """64 KiB that would be 64 MiB, and then more than was said."""
    evil = target.parent.parent / "evil"
    packed = zlib.compress(bytes(1 << 28), 9)
    first_bytes = header.PROLOGUE.pack(header.MAGIC, 1, 0, len(packed), 1 << 16, hashlib.sha256(packed).digest())
    evil.write_bytes(first_bytes + packed)
    tracemalloc.start()
    refused(evil, target, "the head is damaged")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


# Chunks


def stream(*body: bytes) -> bytes:
    """One segment of layout 0 of a million bytes, coded."""
    coded = bytes([streams.CODED]) + b"".join(body)
    return bytes([segments.SYMBOLS]) + number(1 << 20) + bytes([segments.BYTES]) + number(len(coded)) + coded


DEFLATED = zlib.compressobj(9, zlib.DEFLATED, -15)
BOMB = DEFLATED.compress(bytes(1 << 28)) + DEFLATED.flush()
SIZE = number(1 << 20)
CHUNKS: list[tuple[bytes, str]] = [
    (bytes([segments.DEFLATE]) + SIZE + number(len(BOMB)) + BOMB, "deflated data is not as long as it should be"),
    (bytes([segments.DEFLATE]) + SIZE + number(9) + b"\xff" * 9, "deflated data is damaged"),
    (bytes([segments.DEFLATE]) + SIZE + number(0), "deflated data is not as long as it should be"),
    (bytes([segments.FILL]) + number((1 << 20) + 1) + b"a", "1,048,577 where at most 1,048,576 can be"),
    (bytes([segments.FILL]) + number(1 << 19) + b"a", "1 bytes expected, 0 are left"),
    (bytes([segments.FILL]) + SIZE + b"ab", "1 bytes after the last segment"),
    (bytes([segments.FILL]) + number(0) + b"a", "a segment of no bytes"),
    (bytes([segments.STORED]) + SIZE + b"short", "1,048,576 bytes expected, 5 are left"),
    (bytes([9]) + SIZE, "a segment of unknown method 9"),
    (bytes([segments.SYMBOLS]) + SIZE + b"\x07", "a segment of unknown layout 7"),
    (bytes([segments.SYMBOLS]) + number((1 << 20) - 1) + b"\x04", "unknown layout 4 or broken size"),
    (bytes([segments.SYMBOLS]) + SIZE + b"\x80", "a segment refers to a base version, and there is none"),
    (bytes([segments.SYMBOLS]) + SIZE + b"\x00" + number(1 << 30), "where at most 5 can be"),
    (stream(b""), "bytes expected|parts do not fit|damaged"),
    (stream(b"\x07\x00"), "a stream of unknown kind|unknown kind"),
    (stream(b"\x0c\x80\x02\x05\x05"), "classes of neighbourhoods are not in order"),
    (stream(b"\x04\x80" + b"\xff" * 4000), "table|frequenc"),
    (stream(b"\x04\x80\x00\xc8\x00\x00\x00\x00"), "table|frequenc|left"),
]


@pytest.mark.parametrize("number_of_chunk", range(len(CHUNKS)))
def test_a_chunk_that_does_not_decode(good: Path, target: Path, number_of_chunk: int) -> None:
    packed, message = CHUNKS[number_of_chunk]
    listed, chunks = parts(good)
    chunk = {"bytes": 1 << 20, "packed": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    listed["files"][0].update(bytes=1 << 20, chunks=[chunk])
    evil = put(
        target.parent.parent / "evil", listed, packed + chunks[parts(good)[0]["files"][0]["chunks"][0]["packed"] :]
    )
    tracemalloc.start()
    refused(evil, target, f"chunk 0 of 'manifest.json': .*({message})")
    assert tracemalloc.get_traced_memory()[1] < MEMORY
    tracemalloc.stop()


def test_a_chunk_that_decodes_to_something_else(good: Path, target: Path) -> None:
    """Its own sha256 fits, and the manifest's does not."""
    packed = (
        bytes([segments.FILL])
        + number(next(f["bytes"] for f in parts(good)[0]["files"] if f["path"] == "model.onnx.data"))
        + b"a"
    )
    refused(with_chunk(good, target, packed), target, "does not have the sha256 of the manifest when unpacked")


def test_a_manifest_of_something_else(good: Path, target: Path) -> None:
    for text, message in ((b"{}", "manifest.json: no schema_version"), (b"\xff\xfe", "its manifest is no UTF-8 text")):
        packed = bytes([segments.STORED]) + number(len(text)) + text
        listed, chunks = parts(good)
        rest = chunks[listed["files"][0]["chunks"][0]["packed"] :]
        digest = hashlib.sha256(text).hexdigest()
        chunk = {"bytes": len(text), "packed": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
        listed["files"][0].update(bytes=len(text), sha256=digest, chunks=[chunk])
        refused(put(target.parent.parent / "evil", listed, packed + rest), target, message)


def test_a_name_that_no_file_system_takes(good: Path, target: Path) -> None:
    """Head and manifest agree on it."""
    listed, chunks = parts(good)
    manifest = json.loads((good.parent / "b" / "manifest.json").read_text(encoding="utf-8"))
    rest = chunks[listed["files"][0]["chunks"][0]["packed"] :]
    manifest["files"][0]["path"] = first(listed)["path"] = "x" * 300
    text = json.dumps(manifest).encode()
    packed = bytes([segments.STORED]) + number(len(text)) + text
    chunk = {"bytes": len(text), "packed": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    listed["files"][0].update(bytes=len(text), sha256=hashlib.sha256(text).hexdigest(), chunks=[chunk])
    evil = put(target.parent.parent / "evil", listed, packed + rest)
    refused(evil, target, r"evil: cannot be unpacked \(.+: '.*x{70}'\)$")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_pack_that_was_cut(good: Path, target: Path, share: float) -> None:
    evil = target.parent.parent / "evil"
    data = good.read_bytes()
    evil.write_bytes(data[: int(share * len(data))])
    refused(evil, target, "ends inside its head|ends at byte [0-9,]+ of [0-9,]+; go on with the download there")


def test_a_pack_that_goes_on(good: Path, target: Path) -> None:
    evil = target.parent.parent / "evil"
    evil.write_bytes(good.read_bytes() + b"x")
    refused(evil, target, "bytes, its head lists")


def test_a_delta_that_reads_past_its_base(good: Path, target: Path) -> None:
    base = Bundle.open(good.parent / "b")
    listed, chunks = parts(good)
    listed["base"] = hashlib.sha256((base.directory / "manifest.json").read_bytes()).hexdigest()
    for path, place in (("model.onnx", 1 << 50), ("vectors/none", 0)):
        first(listed)["chunks"][0].update(base=place)
        first(listed)["path"] = path
        evil = put(target.parent.parent / "evil", listed, chunks)
        message = "refers to bytes that the base version does not have|list different files"
        refused(evil, target, message, base=base)


# At random


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes(good: Path, target: Path, flips: list[tuple[float, int]]) -> None:
    """Every byte of a pack is under a sha256."""
    data = bytearray(good.read_bytes())
    for share, bits in flips:
        data[int(share * len(data))] ^= bits
    evil = target.parent.parent / "evil"
    evil.write_bytes(data)
    if data != good.read_bytes():
        refused(evil, target, ".")
        assert list(target.parent.iterdir()) == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_with_a_sha256_that_fits(good: Path, target: Path, flips: list[tuple[float, int]]) -> None:
    """Who makes a pack makes its sha256 too: decoding itself has to hold."""
    listed, chunks = parts(good)
    at = 0
    for file in listed["files"]:
        size = sum(chunk["packed"] for chunk in file["chunks"])
        if file["path"] == "model.onnx.data":
            break
        at += size
    data = bytearray(chunks[at : at + size])
    for share, bits in flips:
        data[int(share * len(data))] ^= bits
    if data != chunks[at : at + size]:
        refused(with_chunk(good, target, bytes(data)), target, ".")
        assert list(target.parent.iterdir()) == []
