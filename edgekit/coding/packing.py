"""A bundle into one file for download."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgekit.bundle import Bundle, BundleLike
from edgekit.bundle.reading import sha256
from edgekit.bundle.writing import is_disk_full
from edgekit.coding import regions
from edgekit.coding.header import MAGIC, MOST_CHUNKS, Chunk, Head, PackedFile, write_front
from edgekit.coding.segments import Piece, encode_chunk
from edgekit.coding.signature import signer
from edgekit.coding.tables import Symbols
from edgekit.errors import BundleError, CheckFailed, UnsupportedError, UsageError
from edgekit.spec.names import DATA, MANIFEST
from edgekit.spec.progress import Progress
from edgekit.spec.records import Layer
from edgekit.unfinished import Claim, ended_like_ctrl_c, in_the_making, leftovers

LARGEST_BUNDLE = MOST_CHUNKS // 2 * regions.CHUNK
"""Bytes of a bundle's files: chunks before padding and at tensors' ends are short."""
WORKERS = 2
"""Chunks coded at a time; each takes some 30 MB."""


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` made; sizes in bytes."""

    pack: str
    bytes: int
    bundle_bytes: int
    weight_bytes: int  # of the chunks of model.onnx.data
    weights: int  # in the manifest's layers, each tensor once
    files: tuple[dict[str, Any], ...]  # path, bytes, packed
    chunks: int
    copied: int  # chunks that are the base version's
    signed: bool

    @property
    def bits_per_weight(self) -> float | None:
        """Packed bits of model.onnx.data for each weight of a layer: scales and all else in that file count."""
        return 8 * self.weight_bytes / self.weights if self.weights else None

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.pack}: {self.bytes:,} bytes, {self.bundle_bytes:,} unpacked ({self.bytes / self.bundle_bytes:.1%})"
        if self.bits_per_weight is not None:
            yield f"  weights {self.bits_per_weight:.3f} bits each, {self.weights:,} of them"
        if self.copied:
            yield f"  {self.copied} of {self.chunks} chunks are the base version's"
        if self.signed:
            yield "  signed"

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {**asdict(self), "bits_per_weight": self.bits_per_weight}


def pack(
    bundle: BundleLike,
    output: str | Path,
    *,
    base: BundleLike | None = None,
    sign: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda what, share: None,
) -> Packed:
    """Writes ``bundle`` as the file ``output``, from which :func:`~edgekit.coding.unpack` makes it again, byte for
    byte.

    With ``base``, an older version that the receiver has, only what differs is written. ``sign`` is the file of an
    Ed25519 private key. Raises BundleError when a file is not what the manifest says, UsageError when ``output`` exists
    (``force`` replaces a pack) or cannot be written, CheckFailed when the disk is full; nothing is left then.
    """
    bundle, output = Bundle.open(bundle), Path(output)
    base = None if base is None else Bundle.open(base)
    signature = None if sign is None else signer(Path(sign))
    if bundle.nbytes > LARGEST_BUNDLE:
        raise UnsupportedError(f"{bundle.directory}: {bundle.nbytes:,} bytes, a pack holds {LARGEST_BUNDLE:,} at most")
    with _atomic(output, force) as file, tempfile.TemporaryFile(dir=output.parent) as body:
        head = _write_chunks(bundle, base, body, progress)
        file.write(write_front(head, signature))
        body.seek(0)
        shutil.copyfileobj(body, file, 1 << 20)
    return _summary(bundle, head, output, sign is not None)


@contextlib.contextmanager
def _atomic(output: Path, force: bool) -> Iterator[IO[bytes]]:
    """A file that gets its name when it is whole."""
    _check_output(output, force)
    partial = in_the_making(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for path, _ in leftovers(output):
            path.unlink(missing_ok=True)
        with partial.open("wb") as file, contextlib.closing(Claim(partial)), ended_like_ctrl_c():
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(output)
    except OSError as error:
        if is_disk_full(error):
            raise CheckFailed(f"{output}: the disk filled up; make room or give another -o") from error
        raise UsageError(
            f"{output}: cannot be written ({error.strerror}); give -o a place that can be written"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _check_output(output: Path, force: bool) -> None:
    """A pack is replaced with ``force``, never anything else."""
    if not output.exists():
        return
    if output.is_dir():
        raise UsageError(f"{output}: is there already; -o names a file")
    if not force:
        raise UsageError(f"{output}: is there already; --force replaces it")
    try:
        with output.open("rb") as file:
            known = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise UsageError(f"{output}: cannot be read ({error.strerror}); give -o another name") from None
    if not known:
        raise UsageError(f"{output}: is no pack; give -o another name (nothing was changed)")


def _write_chunks(bundle: Bundle, base: Bundle | None, body: IO[bytes], progress: Progress) -> Head:
    manifest = bundle.manifest
    listed = [(info.path, info.bytes, info.sha256) for info in manifest.files]
    own = bundle.directory / MANIFEST
    listed.insert(0, (MANIFEST, own.stat().st_size, sha256(own)))
    total, done, files = sum(size for _, size, _ in listed), 0, []
    with ThreadPoolExecutor(WORKERS) as pool:
        for path, size, digest in listed:
            report = functools.partial(_report, progress, f"pack {path}", done, total)
            report(0)
            files.append(PackedFile(path, size, digest, _file_chunks(bundle, base, path, digest, body, pool, report)))
            done += size
    return Head(manifest.name, "" if base is None else sha256(base.directory / MANIFEST), tuple(files))


def _report(progress: Progress, what: str, before: int, total: int, part: int) -> None:
    progress(what, (before + part) / total)


def _file_chunks(
    bundle: Bundle, base: Bundle | None, path: str, digest: str, body: IO[bytes], pool: ThreadPoolExecutor,
    progress: Callable[[int], None],
) -> tuple[Chunk, ...]:  # fmt: skip
    data = _mapped(bundle.directory / path)
    old = _base_file(base, path)
    parts = regions.regions(
        path, len(data), bundle.stored, None if base is None else base.stored, None if old is None else len(old)
    )
    chunks: list[Chunk] = []
    waiting: deque[Future[tuple[Chunk, bytes]]] = deque()
    whole, done = hashlib.sha256(), 0

    def write() -> None:
        chunk, packed = waiting.popleft().result()
        body.write(packed)
        chunks.append(chunk)

    for group in regions.chunks(parts):
        waiting.append(pool.submit(_chunk, data, old, group))
        whole.update(data[group[0].offset : group[-1].offset + group[-1].length].data)
        if len(waiting) > WORKERS:
            write()
        done += sum(part.length for part in group)
        progress(done)
    while waiting:
        write()
    if whole.hexdigest() != digest:
        raise BundleError(
            f"{bundle.directory / path}: sha256 is not the manifest's; the file was changed, export again"
        )
    return tuple(chunks)


def _chunk(data: Symbols, old: Symbols | None, group: list[regions.Region]) -> tuple[Chunk, bytes]:
    start, stop = group[0].offset, group[-1].offset + group[-1].length
    base = group[0].base
    if base is not None and old is not None and np.array_equal(data[start:stop], old[base : base + stop - start]):
        return Chunk(stop - start, 0, hashlib.sha256(data[start:stop].data).hexdigest(), base), b""
    packed = encode_chunk(_piece(data, old, part) for part in group)
    return Chunk(stop - start, len(packed), hashlib.sha256(packed).hexdigest(), base), packed


def _piece(data: Symbols, old: Symbols | None, part: regions.Region) -> Piece:
    own = np.array(data[part.offset : part.offset + part.length])
    before = None if part.base is None or old is None else np.array(old[part.base : part.base + part.length])
    return Piece(own, part.layouts, True, before)


def _mapped(path: Path) -> Symbols:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def _base_file(base: Bundle | None, path: str) -> Symbols | None:
    """The base version's file of that name, if it has one."""
    if base is None or (path != MANIFEST and path not in {info.path for info in base.manifest.files}):
        return None
    return _mapped(base.directory / path)


def _place(bundle: Bundle, layer: Layer) -> object:
    """Where a layer's tensor lies: two names of one place, such as a vocabulary's, are one tensor."""
    stored = bundle.stored.get(layer.tensor)
    return (stored.file, stored.offset) if stored else layer.tensor or layer.name


def _summary(bundle: Bundle, head: Head, output: Path, signed: bool) -> Packed:
    chunks = [chunk for file in head.files for chunk in file.chunks]
    files: list[dict[str, Any]] = [
        {"path": file.path, "bytes": file.bytes, "packed": sum(chunk.packed for chunk in file.chunks)}
        for file in head.files
    ]
    layers = {(_place(bundle, layer), layer.rows): layer.weights for layer in bundle.manifest.layers}
    return Packed(
        pack=str(output),
        bytes=output.stat().st_size,
        bundle_bytes=head.nbytes,
        weight_bytes=sum(file["packed"] for file in files if file["path"] == DATA),
        weights=sum(layers.values()),
        files=tuple(files),
        chunks=len(chunks),
        copied=sum(chunk.copied for chunk in chunks),
        signed=signed,
    )
