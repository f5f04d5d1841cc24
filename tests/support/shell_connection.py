"""A connection whose device is this machine: its scripts run in a shell, in a directory of their own."""

from __future__ import annotations

from pathlib import Path

from edgekit.devices import Connection, Target
from edgekit.devices.connection import Done


class ShellConnection(Connection):
    """``limit``: bytes of stdin after which a script loses its link, as often as ``breaks`` says."""

    def __init__(self, directory: Path, limit: int = 0, breaks: int = 0) -> None:
        super().__init__(Target.parse("ssh:here"), str(directory))
        self.limit, self.breaks = limit, breaks

    def argv(self, script: str) -> list[str]:
        if self.breaks and "cat >" in script:
            self.breaks -= 1
            head, _, rest = script.partition("cat >")
            place = rest.lstrip(">").split("&&")[0]
            return ["sh", "-c", f"{head} head -c {self.limit} >> {place}; echo 'link down' >&2; exit 255"]
        return ["sh", "-c", script]

    def lost(self, done: Done) -> str:
        return done.stderr.strip() if done.code == 255 else ""
