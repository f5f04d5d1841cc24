"""The front of a pack: what it holds, chunk by chunk, so that everything after it can be checked before it is used.

``prologue | signature | head | chunks``; the numbers are in docs/pack.md section 2.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, cast

from edgekit.bundle.confinement import confined
from edgekit.errors import BundleError
from edgekit.spec.names import MANIFEST
from edgekit.strict import build, parse_json

MAGIC = b"EDGEPACK"
VERSION = 1
PROLOGUE = struct.Struct("<8sIIII32s")
"""Magic, version, signed or not, packed and whole bytes of the head, sha256 of the packed head."""
SIGNATURE_BYTES = 64
LARGEST_HEAD = 16 << 20
LARGEST_CHUNK = 4 << 20
MOST_FILES = MOST_CHUNKS = 65_536
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Chunk:
    """A piece of a file; pieces follow one another in the file and in the pack, so neither place is written down."""

    bytes: int
    packed: int  # 0: the base version's bytes as they are
    sha256: str  # of the packed bytes, or of the bytes themselves where packed is 0
    base: int | None = None  # where in the base version's file of the same name

    @property
    def copied(self) -> bool:
        """Nothing of it is in the pack."""
        return self.packed == 0


@dataclass(frozen=True)
class PackedFile:
    """A file of the bundle; the manifest is one of them, and the first."""

    path: str
    bytes: int
    sha256: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Head:
    """All files in the order of their chunks; ``base`` is the sha256 of the base version's manifest, or empty."""

    name: str
    base: str
    files: tuple[PackedFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all chunks in the pack."""
        return sum(chunk.packed for file in self.files for chunk in file.chunks)


@dataclass(frozen=True)
class Front:
    """The front of a pack as it was read; chunks begin at byte ``size``."""

    head: Head
    size: int
    signed: bool
    signature: bytes
    prologue: bytes

    @property
    def total(self) -> int:
        """Bytes of the whole pack."""
        return self.size + self.head.packed_bytes

    @property
    def id(self) -> str:
        """What tells this pack from every other one."""
        return hashlib.sha256(self.prologue).hexdigest()


def write_front(head: Head, sign: Callable[[bytes], bytes] | None) -> bytes:
    """The bytes before the chunks; ``sign`` gives the signature of the prologue."""
    written = json.dumps(dataclasses.asdict(head), ensure_ascii=False, separators=(",", ":"))
    text = written.encode("utf-8", "backslashreplace")  # half a surrogate pair in a model's name becomes JSON's escape
    packed = zlib.compress(text, 9)
    digest = hashlib.sha256(packed).digest()
    prologue = PROLOGUE.pack(MAGIC, VERSION, int(sign is not None), len(packed), len(text), digest)
    return prologue + (sign(prologue) if sign else b"") + packed


def read_front(file: IO[bytes], where: str) -> Front:
    """Reads and checks all before the chunks. Raises BundleError."""
    prologue = _exactly(file, PROLOGUE.size, where)
    magic, version, signed, packed_bytes, whole_bytes, digest = PROLOGUE.unpack(prologue)
    if magic != MAGIC:
        raise BundleError(f"{where}: not an edgekit pack; give a file that `edgekit pack -o` made")
    if version != VERSION:
        raise BundleError(
            f"{where}: pack version {version}, this edgekit reads {VERSION}; pip install --upgrade edgekit"
        )
    if signed > 1 or not 0 < packed_bytes <= LARGEST_HEAD or not 0 < whole_bytes <= LARGEST_HEAD:
        raise BundleError(f"{where}: impossible sizes in its first bytes; download it again")
    signature = _exactly(file, SIGNATURE_BYTES, where) if signed else b""
    packed = _exactly(file, packed_bytes, where)
    if hashlib.sha256(packed).digest() != digest:
        raise BundleError(f"{where}: the head's sha256 is not what its first bytes say; download it again")
    head = _parse(_inflate(packed, whole_bytes, where), where)
    return Front(head, PROLOGUE.size + len(signature) + packed_bytes, bool(signed), signature, prologue)


def _exactly(file: IO[bytes], count: int, where: str) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise BundleError(f"{where}: ends inside its head; download it again")
    return data


def _inflate(packed: bytes, size: int, where: str) -> bytes:
    coder = zlib.decompressobj()
    try:
        text = coder.decompress(packed, size)
        whole = len(text) == size and not coder.decompress(coder.unconsumed_tail, 1) and coder.eof
    except zlib.error:
        whole = False
    if not whole or coder.unused_data:
        raise BundleError(f"{where}: the head is damaged; download it again")
    return text


def _parse(text: bytes, where: str) -> Head:
    try:
        data = parse_json(text)
    except ValueError:
        raise BundleError(f"{where}: the head is no JSON; download it again") from None
    lists = _take_chunks(data, where)
    head = cast(Head, build(Head, data, f"{where}: head", BundleError))
    files = zip(head.files, lists, strict=True)
    head = dataclasses.replace(head, files=tuple(dataclasses.replace(file, chunks=chunks) for file, chunks in files))
    if not head.files or head.files[0].path != MANIFEST:
        raise BundleError(f"{where}: the head does not begin with {MANIFEST}; download it again")
    if head.base and not _SHA256.fullmatch(head.base):
        raise BundleError(f"{where}: the head's base is no sha256")
    seen: set[str] = set()
    for file in head.files:
        _check_file(file, bool(head.base), f"{where}: {file.path[:120]!r}", seen)
    for file in head.files:
        if any(str(parent).lower() in seen for parent in confined(file.path, where).parents):
            raise BundleError(f"{where}: {file.path[:120]!r} lies in what is a file itself; do not use this pack")
    return head


def _take_chunks(data: Any, where: str) -> list[tuple[Chunk, ...]]:
    """The chunks of all files, taken out of ``data``: there may be many, and the general way would take a minute."""
    files = data.get("files") if isinstance(data, dict) else None
    files = files if isinstance(files, list) else []
    listed = [file["chunks"] for file in files if isinstance(file, dict) and isinstance(file.get("chunks"), list)]
    if len(listed) > MOST_FILES or sum(map(len, listed)) > MOST_CHUNKS:
        raise BundleError(f"{where}: lists more than {MOST_CHUNKS:,} files or chunks; no pack has so many")
    taken = [tuple(_chunk(chunk, where) for chunk in chunks) for chunks in listed]
    for chunks in listed:
        chunks.clear()
    return taken


def _chunk(data: Any, where: str) -> Chunk:
    kinds = {key: type(value) for key, value in data.items()} if isinstance(data, dict) else {}
    base = kinds.pop("base", type(None))
    if kinds != {"bytes": int, "packed": int, "sha256": str} or base not in (int, type(None)):
        raise BundleError(f"{where}: a chunk in its head is not of bytes, packed, sha256 and base; download it again")
    return Chunk(**data)


def _check_file(file: PackedFile, based: bool, where: str, seen: set[str]) -> None:
    confined(file.path, where)
    if file.path.lower() in seen:
        raise BundleError(f"{where}: is listed twice (upper and lower case are one); do not use this pack")
    seen.add(file.path.lower())
    if not _SHA256.fullmatch(file.sha256) or not all(_SHA256.fullmatch(chunk.sha256) for chunk in file.chunks):
        raise BundleError(f"{where}: a sha256 is not 64 hexadecimal digits; download the pack again")
    for chunk in file.chunks:
        if not 0 < chunk.bytes <= LARGEST_CHUNK or not 0 <= chunk.packed <= largest_packed(chunk.bytes):
            raise BundleError(
                f"{where}: a chunk of {chunk.bytes:,} bytes packed into {chunk.packed:,}; "
                f"chunks have 1 to {LARGEST_CHUNK:,} and are packed into no more than an eighth above that"
            )
        if (chunk.base is None and chunk.copied) or (chunk.base is not None and (not based or chunk.base < 0)):
            raise BundleError(f"{where}: a chunk refers to a base version that is not there; download the pack again")
    if sum(chunk.bytes for chunk in file.chunks) != file.bytes:
        raise BundleError(f"{where}: its chunks do not add up to its {file.bytes:,} bytes; download the pack again")


def largest_packed(size: int) -> int:
    """Bytes that a chunk of ``size`` bytes is packed into at most."""
    return size + size // 8 + 1024
