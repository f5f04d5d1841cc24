"""``local``, ``ssh:[user@]host[:port]`` and ``adb:SERIAL``: where a bundle runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.errors import UsageError

LOCAL = "local"
FORMS = "local, ssh:[user@]host[:port] or adb:SERIAL"
# A leading dash would be an option to ssh or adb.
_SSH = re.compile(r"(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[\w.][\w.-]*)(?::(?P<port>\d{1,5}))?")
_SERIAL = re.compile(r"[\w.\[][\w.:\[\]-]*")


@dataclass(frozen=True)
class Target:
    """A parsed target; ``text`` is what the user wrote."""

    text: str
    kind: str  # "local", "ssh" or "adb"
    host: str = ""  # of ssh, with the user; or adb's serial number
    port: int | None = None

    @staticmethod
    def parse(text: str) -> Target:
        """Raises UsageError for anything but the three forms."""
        if text == LOCAL:
            return Target(text, LOCAL)
        kind, _, rest = text.partition(":")
        if kind == "ssh" and (parts := _SSH.fullmatch(rest)):
            port = int(parts["port"]) if parts["port"] else None
            if port is None or 1 <= port <= 65535:
                host = parts["host"].strip("[]")
                return Target(text, "ssh", f"{parts['user']}@{host}" if parts["user"] else host, port)
        if kind == "adb" and _SERIAL.fullmatch(rest):
            return Target(text, "adb", rest)
        raise UsageError(f"target {text!r}: is none of {FORMS}")
