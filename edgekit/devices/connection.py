"""Where a bundle runs (``local``, ``ssh:[user@]host[:port]``, ``adb:SERIAL``), and a connection to a device: shell
scripts run there with the system's own ``ssh`` or ``adb``.

Everything else (files, the runner, facts) goes through ``Connection.argv``: one command whose stdin and stdout are the
script's, byte for byte. Both tools use the user's own settings and keys; ssh's questions reach the terminal.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import RuntimeUnavailable, UsageError

LOCAL = "local"
FORMS = "local, ssh:[user@]host[:port] or adb:SERIAL"
# A leading dash would be an option to ssh or adb.
_SSH = re.compile(r"(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[\w.][\w.-]*)(?::(?P<port>\d{1,5}))?")
_SERIAL = re.compile(r"[\w.\[][\w.:\[\]-]*")
SSH_CONFIG = "EDGEKIT_SSH_CONFIG"
"""Environment variable: a file for ``ssh -F``; without it ssh reads the user's own."""
TIMEOUT = 120.0
CONNECT_SECONDS = 20
_QUIET = ["-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]


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


@dataclass(frozen=True)
class Done:
    """A script that ended."""

    code: int
    stdout: bytes
    stderr: str


class Connection:
    """An open connection to a device that is not this machine; ``directory`` holds all that edgekit keeps there."""

    def __init__(self, target: Target, directory: str) -> None:
        """``directory``: absolute, on the device."""
        self.target, self.directory = target, directory

    @property
    def name(self) -> str:
        """The target as the user wrote it."""
        return self.target.text

    def argv(self, script: str) -> list[str]:
        """The command that runs a POSIX shell script on the device."""
        raise NotImplementedError

    def lost(self, done: Done) -> str:
        """Why the device could not be reached, in one line; empty when it was."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the connection."""

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = TIMEOUT) -> Done:
        """Runs a script to its end, whatever its exit code. Raises RuntimeUnavailable for a device out of reach."""
        try:
            ran = subprocess.run(self.argv(script), input=stdin, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeUnavailable(
                f"{self.name}: did not answer within {timeout:g} s; is it busy, asleep or out of reach?"
            ) from None
        done = Done(ran.returncode, ran.stdout, ran.stderr.decode("utf-8", "replace"))
        if reason := self.lost(done):
            raise RuntimeUnavailable(f"{self.name}: {reason}")
        return done

    def text(self, script: str, *, timeout: float = TIMEOUT) -> str:
        """A script's output. Raises RuntimeUnavailable when it fails, with its own last words."""
        done = self.run(script, timeout=timeout)
        if done.code != 0:
            raise RuntimeUnavailable(f"{self.name}: a command failed there ({last_words(done)})")
        return done.stdout.decode("utf-8", "replace")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def last_line(text: str, silent: str = "no message") -> str:
    """The last line of what a command wrote, cut where it is long."""
    return (text.strip().splitlines() or [silent])[-1][:300]


def last_words(done: Done) -> str:
    """The last line that a command wrote, and its exit code."""
    lines = (done.stderr + "\n" + done.stdout.decode("utf-8", "replace")).split("\n")
    words = next((line.strip() for line in lines if line.strip()), "no message")
    return f"exit code {done.code}: {words[:300]}"


class Ssh(Connection):
    """OpenSSH with one shared connection, so that a password is asked for once."""

    def __init__(self, target: Target) -> None:
        """Connects. Raises RuntimeUnavailable when ssh is missing or the host refuses."""
        super().__init__(target, "")
        self._ssh = _program("ssh", "OpenSSH's client")
        config = os.environ.get(SSH_CONFIG)
        self._options = [*(["-F", config] if config else []), *(["-p", str(target.port)] if target.port else [])]
        self._scratch = tempfile.mkdtemp(prefix="ek-")  # short: a socket's path has 104 characters at most
        self._master: subprocess.Popen[bytes] | None = None
        try:
            if os.name == "posix":
                self._start_master()
            home = self.text("cd && pwd").strip()
        except BaseException:
            self.close()
            raise
        self.directory = f"{home}/.edgekit-device"

    def _start_master(self) -> None:
        """The process that holds the connection, so that every further command takes no handshake."""
        socket, messages = Path(self._scratch) / "s", Path(self._scratch) / "err"
        command = [self._ssh, *self._options, *_QUIET, "-M", "-N", "-S", str(socket), self.target.host]
        with messages.open("wb") as file:
            self._master = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file)
        while not socket.exists():
            if self._master.poll() is not None:
                words = last_line(messages.read_text(errors="replace"))
                raise RuntimeUnavailable(f"{self.name}: ssh could not connect: {words}")
            time.sleep(0.05)

    def argv(self, script: str) -> list[str]:
        shared = ["-S", str(Path(self._scratch) / "s")] if self._master is not None else []
        # The user's login shell need not be a POSIX one.
        return [self._ssh, *self._options, *_QUIET, *shared, "-T", self.target.host, f"sh -c {shlex.quote(script)}"]

    def lost(self, done: Done) -> str:
        words = last_line(done.stderr, "the device closed it without a word")
        return f"ssh lost the connection: {words}" if done.code == 255 else ""

    def close(self) -> None:
        if self._master is not None:
            self._master.terminate()
            self._master.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)


class Adb(Connection):
    """Android's debug bridge; the shell user's directory, no root."""

    def __init__(self, target: Target) -> None:
        """Raises RuntimeUnavailable when adb is missing or the device is absent, offline or unauthorized."""
        super().__init__(target, "/data/local/tmp/edgekit")
        self._adb = _program("adb", "Android's platform-tools")
        self.text("true", timeout=CONNECT_SECONDS)

    def argv(self, script: str) -> list[str]:
        return [self._adb, "-s", self.target.host, "shell", "-T", script]

    def lost(self, done: Done) -> str:
        complaint = next((w for w in done.stderr.strip().splitlines() if w.startswith(("adb: ", "error: "))), "")
        if done.code != 1 or not complaint:  # adb's own exit code; a script's messages may look alike
            return ""
        for word, advice in _ADB_ADVICE.items():
            if word in complaint:
                return f"{complaint.split(': ', 1)[1]}; {advice}"
        return complaint


_ADB_ADVICE = {
    "unauthorized": "unlock the phone and allow USB debugging for this computer",
    "offline": "unplug and plug it in again, or `adb reconnect`",
    "not found": "`adb devices` lists what is attached; `adb connect HOST:PORT` adds a phone in the network",
    "no devices": "plug the phone in and switch USB debugging on",
    "more than one": "name the serial number that `adb devices` shows",
}


def open_connection(target: Target) -> Connection:
    """Connects to an ``ssh`` or ``adb`` target. Raises RuntimeUnavailable when it cannot be reached."""
    if target.kind == LOCAL:
        raise UsageError("target 'local': is this machine, no device")
    return {"ssh": Ssh, "adb": Adb}[target.kind](target)


def attached_phones() -> list[tuple[str, str]]:
    """Serial number and state ("device", "unauthorized", "offline") of what adb sees.

    Raises RuntimeUnavailable when adb is missing or does not answer.
    """
    command = [_program("adb", "Android's platform-tools"), "devices"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeUnavailable("adb devices: no answer; `adb kill-server` and try again") from None
    if done.returncode != 0:
        raise RuntimeUnavailable(f"adb devices: exit code {done.returncode}: {last_line(done.stderr)}")
    fields = (line.split() for line in done.stdout.splitlines()[1:])
    return [(words[0], words[1]) for words in fields if len(words) >= 2]


def _program(name: str, what: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise RuntimeUnavailable(f"{name} is not installed; {name}: targets need {what} in PATH")
    return path
