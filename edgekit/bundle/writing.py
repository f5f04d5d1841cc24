"""Writes a bundle: into a temporary sibling directory, renamed when it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType

import onnx_ir as ir
import psutil

from edgekit.bundle.manifest import NAME, FileInfo, Manifest
from edgekit.bundle.reading import GRAPH, Bundle
from edgekit.errors import CheckFailed, UsageError

DATA = "model.onnx.data"
PAGE = 4096
"""External data starts at multiples of this, so that a reader can map each tensor by itself."""
SMALLEST_EXTERNAL = 1024
STORAGE = "edgekit.storage"
RESERVE = 64 << 20
"""Bytes that must stay free on the disk beside the weights: graph, vectors, tokenizer."""

Progress = Callable[[str, float], None]


def write_graph(model: ir.Model, directory: Path, progress: Progress = lambda what, share: None) -> None:
    """Writes ``model.onnx`` and ``model.onnx.data``, one tensor at a time.

    Tensors whose ``meta["edgekit.storage"]`` is equal are the same bytes and written once. Initializers afterwards refer
    to the file. Raises CheckFailed when the disk has no room.
    """
    large = [
        v
        for v in model.graph.initializers.values()
        if v.const_value is not None and v.const_value.nbytes >= SMALLEST_EXTERNAL
    ]
    sizes = {_key(v.const_value): v.const_value.nbytes for v in large if v.const_value is not None}
    total = sum(sizes.values())
    free = shutil.disk_usage(directory).free
    if free < total + RESERVE:
        raise CheckFailed(
            f"{directory.parent}: {total + RESERVE:,} bytes needed for the bundle, {free:,} free; make room or give another -o"
        )
    written: dict[object, tuple[int, int]] = {}
    done = 0
    with _no_room(directory), (directory / DATA).open("wb") as file:
        for value in large:
            tensor = value.const_value
            assert tensor is not None
            key = _key(tensor)
            if key not in written:
                offset = -(-file.tell() // PAGE) * PAGE
                file.seek(offset)
                file.write(memoryview(tensor.numpy()).cast("B") if tensor.nbytes else b"")
                written[key] = offset, file.tell() - offset
                done += tensor.nbytes
                progress(f"write {value.name}", done / total)
            value.const_value = _external(tensor, *written[key], directory)
        file.flush()
        ir.save(model, directory / GRAPH)


def _key(tensor: ir.TensorProtocol | None) -> object:
    meta = getattr(tensor, "meta", {})
    return meta.get(STORAGE, id(tensor))


def _external(tensor: ir.TensorProtocol, offset: int, length: int, directory: Path) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        DATA, offset, length, tensor.dtype, shape=ir.Shape(tensor.shape), name=tensor.name or "", base_dir=directory
    )


@contextlib.contextmanager
def _no_room(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise CheckFailed(
                f"{directory.parent}: {error.strerror} while writing the bundle; make room or give another -o"
            ) from error
        raise


class BundleWriter:
    """A bundle in the making: ``with BundleWriter(path) as writer: ...; return writer.commit(manifest)``.

    Until ``commit`` everything is in ``directory``, a hidden sibling of the target that disappears on any exception,
    on Ctrl-C and on SIGTERM. What a killed process left behind is removed by the next export to the same place.
    Raises UsageError when the target exists (``force`` replaces a bundle, never another kind of directory).
    """

    def __init__(self, target: Path, force: bool = False) -> None:
        self.target = Path(os.path.abspath(target))
        self.force = force
        self.directory = self.target.parent / f".{self.target.name}.partial-{os.getpid()}-{threading.get_ident()}"
        self._previous: object = None

    def __enter__(self) -> BundleWriter:
        self._check_target()
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            for left in self.target.parent.glob(f".{self.target.name}.partial-*"):
                owner = left.name.rpartition("partial-")[2].partition("-")[0]
                if left == self.directory or (owner.isdigit() and not psutil.pid_exists(int(owner))):
                    shutil.rmtree(left, ignore_errors=True)
            self.directory.mkdir()
        except OSError as error:
            raise UsageError(
                f"{self.target}: cannot be made ({error.strerror}); give -o a place that can be written"
            ) from error
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)  # type: ignore[arg-type]
        shutil.rmtree(self.directory, ignore_errors=True)

    def _check_target(self) -> None:
        if not self.target.exists():
            return
        if not self.target.is_dir():
            raise UsageError(f"{self.target}: is a file; -o names a directory")
        if not any(self.target.iterdir()):
            return
        if not (self.target / NAME).is_file():
            raise UsageError(
                f"{self.target}: holds files that are no bundle; give -o another directory (nothing was changed)"
            )
        if not self.force:
            raise UsageError(f"{self.target}: a bundle is there already; --force replaces it")

    def draft(self, manifest: Manifest) -> Bundle:
        """The bundle as it stands in the temporary directory, to be run before it is committed; hashes are left out."""
        paths = sorted(p for p in self.directory.rglob("*") if p.is_file() and p.name != NAME)
        files = tuple(FileInfo(p.relative_to(self.directory).as_posix(), p.stat().st_size, "") for p in paths)
        (self.directory / NAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
        return Bundle.open(self.directory)

    def commit(self, manifest: Manifest) -> Bundle:
        """Adds sizes and sha256 of every file, writes the manifest, moves the directory into place and opens it."""
        with _no_room(self.directory):
            paths = sorted(p for p in self.directory.rglob("*") if p.is_file() and p.name != NAME)
            files = tuple(
                FileInfo(p.relative_to(self.directory).as_posix(), p.stat().st_size, sha256(p)) for p in paths
            )
            (self.directory / NAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
            for path in [*paths, self.directory / NAME]:
                _sync(path)
        old = self.directory.with_name(self.directory.name.replace("partial", "old"))
        if self.target.exists():
            self.target.rename(old)
        self.directory.rename(self.target)
        shutil.rmtree(old, ignore_errors=True)
        return Bundle.open(self.target)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file.read)
        )


def _sha256(read: Callable[[int], bytes]) -> str:
    digest = hashlib.sha256()
    while piece := read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()
