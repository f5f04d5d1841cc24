"""Names and files that stay inside the bundle's directory."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from edgekit.errors import BundleError

# What some file system refuses, reads as something else, or ONNX Runtime gives a meaning of its own ("*" marks memory).
_NOT_PORTABLE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def confined(name: str, where: str) -> PurePosixPath:
    """A path as a bundle may name it: relative, forward slashes, no ``..``, readable by every system.

    Raises BundleError that begins with ``where``.
    """
    path = PurePosixPath(name)
    parts = path.parts
    bad = not parts or str(path) != name or path.is_absolute() or _NOT_PORTABLE.search(name)
    if bad or any(part == ".." or part.endswith((".", " ")) or _DEVICE.match(part) for part in parts):
        raise BundleError(
            f"{where}: path {name[:120]!r} is not a plain relative path inside the bundle; do not use this bundle"
        )
    return path


def plain_file(directory: Path, name: str, where: str) -> os.stat_result:
    """Facts about a file of the bundle that is no link and lies where its name says.

    Raises BundleError when it is missing, a directory or device, or reached through a symbolic, hard or directory link.
    """
    path = directory / confined(name, where)
    try:
        status = path.lstat()
    except (OSError, ValueError):
        raise BundleError(f"{where}: {name!r} is missing; export or download the bundle again") from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: is a link or no file at all; a bundle holds plain files only")
    if status.st_nlink > 1:
        raise BundleError(f"{path}: has {status.st_nlink} hard links; a bundle's files are its own, copy them")
    # Also sees Windows junctions, which are no symbolic links.
    if _real(path) != os.path.join(_real(directory), os.path.normcase(name)):
        raise BundleError(f"{path}: lies behind a link; a bundle holds plain directories only")
    return status


def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))
