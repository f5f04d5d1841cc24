"""A pack into a bundle: chunk by chunk, in bounded memory, and nothing of it is seen before all of it was checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import IO

import numpy as np

from edgekit.bundle import Bundle, BundleLike, BundleWriter, Manifest
from edgekit.bundle.confinement import plain_file
from edgekit.bundle.graph import check_room
from edgekit.bundle.reading import sha256
from edgekit.bundle.writing import is_disk_full
from edgekit.coding.header import Chunk, Front, PackedFile, read_front
from edgekit.coding.segments import decode_chunk
from edgekit.coding.signature import check_signature
from edgekit.coding.tables import Symbols
from edgekit.errors import BundleError, CheckFailed, UsageError
from edgekit.spec.names import LARGEST_MANIFEST, MANIFEST
from edgekit.spec.progress import Progress
from edgekit.unfinished import Claim, unclaimed


def unpack(
    pack: str | Path | IO[bytes],
    output: str | Path,
    *,
    base: BundleLike | None = None,
    verify_key: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = lambda what, share: None,
) -> Bundle:
    """Makes the bundle of a pack, a file or a stream that is read once from front to back.

    ``base`` is the older version that a delta pack needs. With ``verify_key``, the file of an Ed25519 public key, the
    pack must be signed by its owner. With ``resume`` what a download has brought so far is unpacked and kept beside
    ``output``, CheckFailed says at which byte the download has to go on, and the next call goes on there.
    Raises BundleError for a pack that is damaged or does not fit, UsageError when ``output`` exists (``force`` replaces
    a bundle), CheckFailed when the disk is too small; except for what ``resume`` keeps, nothing is left then.
    """
    base = None if base is None else Bundle.open(base)
    with _opened(Path(pack) if isinstance(pack, str) else pack) as (file, where):
        front = read_front(file, where)
        if verify_key is not None:
            check_signature(front, Path(verify_key), where)
        _check_base(front, base, where)
        if not resume:
            _check_size(file, front, where)
        return _unpack(file, where, front, Path(output), base, resume, force, progress)


def _unpack(
    file: IO[bytes], where: str, front: Front, target: Path, base: Bundle | None, resume: bool, force: bool,
    progress: Progress,
) -> Bundle:  # fmt: skip
    """The rest of :func:`unpack`, from the first chunk on."""
    with BundleWriter(target, force) as writer, ExitStack() as stack:
        directory = writer.directory
        try:
            if resume:
                directory = writer.target.parent / f".{writer.target.name}.unpacking-{front.id[:16]}"
                stack.enter_context(_claimed(directory))
            check_room(writer.directory, front.head.nbytes)
            _Unpacking(file, where, front, directory, base, resume, progress).run()
            if resume:
                writer.directory.rmdir()
                directory.rename(writer.directory)
        except OSError as error:
            if is_disk_full(error):
                raise  # the writer's
            raise BundleError(
                f"{where}: cannot be unpacked ({error.strerror}: {str(error.filename)[-80:]!r})"
            ) from error
        made = writer.place()
        for kept in writer.target.parent.glob(f".{escape(writer.target.name)}.unpacking-*"):
            with unclaimed(kept, 0) as is_free:  # and held meanwhile: another process may just begin there
                if is_free:
                    shutil.rmtree(kept, ignore_errors=True)  # of other packs for the same place
        return made


@contextmanager
def _opened(pack: Path | IO[bytes]) -> Iterator[tuple[IO[bytes], str]]:
    if not isinstance(pack, Path):
        yield pack, str(getattr(pack, "name", "pack"))
        return
    try:
        file = pack.open("rb")
    except OSError as error:
        raise UsageError(
            f"{pack}: cannot be read ({error.strerror}); give a file that `edgekit pack -o` made"
        ) from None
    with file:
        yield file, str(pack)


def _claimed(directory: Path) -> closing[Claim]:
    """Makes what an interrupted download is kept in. Raises UsageError when another process unpacks into it now."""
    _make_plain(directory)
    try:
        return closing(Claim(directory))
    except (BlockingIOError, FileNotFoundError):  # or it has just put it in place
        raise UsageError(
            f"{directory}: another process unpacks the same pack to the same place; wait for its end"
        ) from None


def _make_plain(directory: Path) -> None:
    """Makes a directory unless it is there. Raises BundleError when a link or a file is in its place."""
    directory.mkdir(exist_ok=True) if not directory.is_symlink() else None
    if directory.is_symlink() or not directory.is_dir():
        raise BundleError(f"{directory}: is a link or no directory; remove it, it is not edgekit's")


def _check_base(front: Front, base: Bundle | None, where: str) -> None:
    if not front.head.base:
        return
    if base is None:
        raise UsageError(
            f"{where}: holds only what differs from an older version (manifest sha256 {front.head.base[:16]}...); "
            "give that bundle as --base"
        )
    digest = sha256(base.directory / MANIFEST)
    if digest != front.head.base:
        raise UsageError(
            f"{where}: differs from the version with manifest sha256 {front.head.base[:16]}..., "
            f"--base {base.directory} has {digest[:16]}...; give the version that it was made from"
        )


def _check_size(file: IO[bytes], front: Front, where: str) -> None:
    """Of a plain file the size tells at once what is missing; the rest of a stream is seen when it comes."""
    try:
        facts = os.fstat(file.fileno())
    except (OSError, AttributeError, ValueError):
        return
    if not stat.S_ISREG(facts.st_mode):
        return
    if facts.st_size < front.total:
        raise BundleError(_cut(where, facts.st_size, front.total))
    if facts.st_size > front.total:
        raise BundleError(f"{where}: {facts.st_size:,} bytes, its head lists {front.total:,}; download it again")


def _cut(where: str, size: int, total: int) -> str:
    return (
        f"{where}: ends at byte {size:,} of {total:,}; go on with the download there, "
        "or unpack what has come with --resume"
    )


@dataclass
class _Unpacking:
    """One run over a pack's chunks."""

    file: IO[bytes]
    where: str
    front: Front
    directory: Path
    base: Bundle | None
    resume: bool
    progress: Progress
    at: int = 0  # in the pack
    done: int = 0  # bytes of the bundle
    kept: int = 0  # chunks
    _seekable: bool = False

    def run(self) -> None:
        """Writes and checks all files."""
        self.at, self._seekable = self.front.size, _is_seekable(self.file)
        for number, file in enumerate(self.front.head.files):
            self._write(file)
            if number == 0:
                self._check_manifest()
        if (self.resume or not self._seekable) and self.file.read(1):
            raise BundleError(f"{self.where}: goes on after its last chunk; download it again")

    def _check_manifest(self) -> None:
        """The manifest lists what the head does, so nothing else is written and every sha256 is the manifest's."""
        path = self.directory / MANIFEST
        try:
            manifest = Manifest.from_json(path.read_text(encoding="utf-8"), f"{self.where}: {MANIFEST}")
        except UnicodeDecodeError:
            raise BundleError(f"{self.where}: its manifest is no UTF-8 text; do not use this pack") from None
        listed = [(info.path, info.bytes, info.sha256) for info in manifest.files]
        if listed != [(file.path, file.bytes, file.sha256) for file in self.front.head.files[1:]]:
            raise BundleError(f"{self.where}: its head and its manifest list different files; do not use this pack")

    def _write(self, file: PackedFile) -> None:
        if file.path == MANIFEST and file.bytes > LARGEST_MANIFEST:
            raise BundleError(f"{self.where}: a manifest of {file.bytes:,} bytes; no manifest is that large")
        path = self.directory / file.path
        for folder in reversed(path.relative_to(self.directory).parents[:-1]):
            _make_plain(self.directory / folder)
        digest = hashlib.sha256()
        ready = self._ready(file, path, digest) if self.resume and path.is_symlink() | path.exists() else 0
        with path.open("r+b" if ready else "wb") as out:
            out.seek(0, os.SEEK_END)
            for index, chunk in enumerate(file.chunks):
                self.progress(f"unpack {file.path}", self.done / max(1, self.front.head.nbytes))
                if index < ready:
                    self._skip(chunk)
                else:
                    data = self._chunk(file, index, chunk)
                    digest.update(data.data)
                    out.write(data.data)
                self.done += chunk.bytes
                self.kept += 1
        if digest.hexdigest() != file.sha256:
            if self.resume:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise BundleError(
                f"{self.where}: {file.path!r} does not have the sha256 of the manifest when unpacked; "
                + ("it or the base version was damaged" if self.base is not None else "it was damaged")
                + "; nothing was kept"
            )

    def _ready(self, file: PackedFile, path: Path, digest: hashlib._Hash) -> int:
        """Chunks that an earlier call has written; the file is cut after them and they are added to ``digest``."""
        size = plain_file(self.directory, file.path, str(self.directory)).st_size
        ready = kept = 0
        for chunk in file.chunks:
            if kept + chunk.bytes > size:
                break
            ready, kept = ready + 1, kept + chunk.bytes
        os.truncate(path, kept)
        with path.open("rb") as written:
            while piece := written.read(1 << 20):
                digest.update(piece)
        return ready

    def _skip(self, chunk: Chunk) -> None:
        if self._seekable:
            self.file.seek(chunk.packed, os.SEEK_CUR)
            self.at += chunk.packed
        else:
            self._read(chunk.packed)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.file.read(count - len(data))):
            data += more
        if len(data) == count:
            self.at += count
            return data
        if self.resume:
            total = sum(len(file.chunks) for file in self.front.head.files)
            raise CheckFailed(
                f"{self.where}: {self.kept} of {total} chunks are there and were unpacked; go on with the download "
                f"at byte {self.at + len(data):,} of {self.front.total:,} and run this again"
            )
        raise BundleError(_cut(self.where, self.at + len(data), self.front.total))

    def _chunk(self, file: PackedFile, index: int, chunk: Chunk) -> Symbols:
        where = f"{self.where}: chunk {index} of {file.path!r}"
        old = None if chunk.base is None else self._base_bytes(file, chunk, where)
        if chunk.copied:
            assert old is not None
            if hashlib.sha256(old.data).hexdigest() != chunk.sha256:
                raise BundleError(f"{where}: the base version's bytes are not those that the pack was made from")
            return old
        start = self.at
        packed = self._read(chunk.packed)
        if hashlib.sha256(packed).hexdigest() != chunk.sha256:
            raise BundleError(
                f"{where}: bytes {start:,} to {self.at:,} of the pack are damaged (sha256); download them again"
            )
        try:
            return decode_chunk(memoryview(packed), chunk.bytes, old)
        except ValueError as error:
            raise BundleError(f"{where}: {error}; do not use this pack") from None

    def _base_bytes(self, file: PackedFile, chunk: Chunk, where: str) -> Symbols:
        assert self.base is not None and chunk.base is not None
        sizes = {info.path: info.bytes for info in self.base.manifest.files}
        sizes[MANIFEST] = (self.base.directory / MANIFEST).stat().st_size
        if chunk.base + chunk.bytes > sizes.get(file.path, 0):
            raise BundleError(f"{where}: refers to bytes that the base version does not have; do not use this pack")
        plain_file(self.base.directory, file.path, str(self.base.directory))
        with (self.base.directory / file.path).open("rb") as source:
            source.seek(chunk.base)
            data = np.frombuffer(source.read(chunk.bytes), np.uint8)
        if len(data) != chunk.bytes:
            raise BundleError(f"{self.base.directory / file.path}: was cut since it was opened; check the base version")
        return data


def _is_seekable(file: IO[bytes]) -> bool:
    try:
        return file.seekable()
    except AttributeError:
        return False
