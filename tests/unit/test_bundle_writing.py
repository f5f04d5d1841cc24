"""The directory appears whole or not at all, whatever stops the export; nothing that is no bundle is ever replaced."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from edgekit import unfinished
from edgekit.bundle import Bundle, BundleWriter, Manifest, write_graph
from edgekit.errors import BundleError, CheckFailed, RecipeError, UsageError
from edgekit.recipe import Recipe
from edgekit.unfinished import Claim, leftovers, own_directory
from tests.support.tiny_bundle import Weights, decoder_graph, manifest, recipe

DEAD = 2**22 + 7  # above every pid
INSIDE = """
import signal, sys, time, threading
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
from edgekit.bundle import BundleWriter
with BundleWriter(Path(sys.argv[1])) as writer:
    (writer.directory / "model.onnx.data").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(3600)
"""


def small() -> Manifest:
    return manifest(decoder_graph(Weights()), "generic", recipe())


def write(path: Path, force: bool = False, seed: int = 0) -> Bundle:
    with BundleWriter(path, force) as writer:
        write_graph(decoder_graph(Weights(seed)), writer.directory)
        return writer.commit(small())


def test_whole_bundle_and_nothing_else(tmp_path: Path) -> None:
    bundle = write(tmp_path / "deep" / "er" / "b")
    bundle.check_hashes()
    assert sorted(p.name for p in bundle.directory.iterdir()) == ["manifest.json", "model.onnx", "model.onnx.data"]
    assert [p.name for p in bundle.directory.parent.iterdir()] == ["b"]
    assert bundle.manifest == Bundle.open(bundle.directory).manifest
    assert bundle.nbytes == sum(p.stat().st_size for p in bundle.directory.iterdir() if p.name != "manifest.json")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert one.manifest == two.manifest
    assert (one.directory / "manifest.json").read_bytes() == (two.directory / "manifest.json").read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), CheckFailed("x"), SystemExit(3)])
def test_nothing_remains_after_an_exception(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), BundleWriter(tmp_path / "b") as writer:
        (writer.directory / "model.onnx.data").write_bytes(b"half")
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_disk_that_fills_up(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(CheckFailed) as failure, BundleWriter(tmp_path / "b"):
        raise error
    assert str(failure.value) == (
        f"{tmp_path}: the disk filled up while the bundle was written; make room or give another -o"
    )
    assert failure.value.__cause__ is error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_nothing_remains_after_a_signal(tmp_path: Path, name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INSIDE, str(tmp_path / "b")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=1800)
    assert process.returncode != 0
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with BundleWriter(tmp_path / "b"):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_killed_export_is_cleared_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / f".b.partial-{DEAD}-1"
    left.mkdir()
    (left / "model.onnx.data").write_bytes(b"half")
    reused = tmp_path / f".b.partial-{os.getppid()}-1"  # as in another container, where the number is of something else
    reused.mkdir()
    running = tmp_path / f".b.partial-{DEAD}-2"
    running.mkdir()
    claim = Claim(running)
    others = tmp_path / f".other.partial-{DEAD}-1"
    others.mkdir()
    write(tmp_path / "b")
    claim.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([running.name, others.name, "b"])


def test_a_bundle_moved_aside_by_a_killed_export_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "b", seed=1)
    (tmp_path / "b").rename(tmp_path / f".b.old-{DEAD}-1")
    with pytest.raises(UsageError, match="a bundle is there already"):
        write(tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_an_existing_bundle_is_replaced_by_force_only(tmp_path: Path) -> None:
    before = write(tmp_path / "b").manifest
    with pytest.raises(UsageError) as refusal:
        write(tmp_path / "b", seed=1)
    assert str(refusal.value) == f"{tmp_path / 'b'}: a bundle is there already; --force replaces it"
    assert Bundle.open(tmp_path / "b").manifest == before
    assert write(tmp_path / "b", force=True, seed=1).manifest != before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_old_bundle_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    before = write(tmp_path / "b").manifest
    with pytest.raises(RuntimeError), BundleWriter(tmp_path / "b", force=True):
        raise RuntimeError
    assert Bundle.open(tmp_path / "b").manifest == before


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"thesis.tex": "x"}, "thesis.tex"),
        ({"manifest.json": '{"name": "browser extension"}', "code.js": ""}, "code.js"),
        ({"manifest.json": "not json"}, "manifest.json"),
        ({"manifest.json": '{"schema_version": 1, "files": []}', "notes/mine.txt": "x"}, "notes/mine.txt"),
    ],
)
def test_force_never_replaces_what_is_no_bundle(tmp_path: Path, files: dict[str, str], named: str) -> None:
    target = tmp_path / "b"
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    with pytest.raises(UsageError) as refusal:
        write(target, force=True)
    assert str(refusal.value) == (
        f"{target}: holds {named}, which is no part of a bundle; give -o another directory (nothing was changed)"
    )
    assert {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} == set(files)


def test_a_bundle_of_a_newer_version_can_be_replaced(tmp_path: Path) -> None:
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 9, "news": 1}))
    with pytest.raises(BundleError, match="written by a newer edgekit"):
        Bundle.open(tmp_path / "b")
    write(tmp_path / "b", force=True).check_hashes()


def test_unknown_keys_of_a_newer_minor_version_are_ignored(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    text = path.read_text()
    assert "schema_minor" not in text
    for minor, refused in ((0, True), (1, False), (7, False)):
        data = {**json.loads(text), "schema_minor": minor}
        within = data["recipe"]
        places = (data, data["files"][0], data["inputs"][0], within, within["rules"][0], within["parity"])
        for place in places:
            place["news"] = {"of": [1]}
            path.write_text(json.dumps(data))
            if refused:
                with pytest.raises((BundleError, RecipeError), match="unknown key 'news'"):
                    Recipe.from_dict(Bundle.open(tmp_path / "b").manifest.recipe)
                del place["news"]
        if not refused:
            assert Bundle.open(tmp_path / "b").manifest == bundle.manifest


@pytest.mark.parametrize("minor", [-1, True, "1", 1.0, None, [1]])
def test_minor_versions_that_are_none(tmp_path: Path, minor: object) -> None:
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_minor": minor}))
    with pytest.raises(BundleError, match=r"manifest.json: schema_minor: .* is not a whole number from 0$"):
        Bundle.open(tmp_path / "b")


def test_a_newer_minor_version_is_checked_as_ever(tmp_path: Path) -> None:
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    data = {**json.loads(path.read_text()), "schema_minor": 1}
    for change, message in (
        ({"task": "x"}, "not one of"),
        ({"nodes": "1"}, "nodes: expected int"),
        ({"layers": [{"name": "a"}]}, "missing key 'format'"),
        ({"recipe": [1]}, "recipe: expected a mapping"),
    ):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(BundleError, match=message):
            Bundle.open(tmp_path / "b")


def test_targets_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"file: is a file; -o names a directory$"):
        write(tmp_path / "file")
    with pytest.raises(UsageError, match=r"cannot be made \(.*\); give -o a place that can be written$"):
        write(tmp_path / "file" / "b")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        write_graph(decoder_graph(Weights()), writer.directory)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "mine.txt").write_text("x")
        with pytest.raises(UsageError, match=r"holds mine\.txt"):
            writer.commit(small())
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b" / "mine.txt").read_text() == "x"


def test_the_old_bundle_comes_back_when_the_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path / "b").manifest
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if "partial" in self.name:
            raise PermissionError(13, "Access is denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UsageError, match=r"b: cannot be made \(Access is denied\)"):
        write(tmp_path / "b", force=True)
    assert Bundle.open(tmp_path / "b").manifest == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "disk" / "real")
    write(tmp_path / "b")
    write(tmp_path / "b", force=True)
    assert (tmp_path / "b").is_symlink()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["real"]


def test_writing_from_a_thread(tmp_path: Path) -> None:
    found: list[Bundle] = []
    thread = threading.Thread(target=lambda: found.append(write(tmp_path / "b")))
    thread.start()
    thread.join()
    assert len(found) == 1


def test_a_draft_can_be_opened_before_it_is_committed(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        write_graph(decoder_graph(Weights()), writer.directory)
        draft = writer.draft(small())
        assert draft.tensor("embed").shape == (259, 32)
        assert not (tmp_path / "b").exists()
        begun = time.time()
        writer.commit(small())
    assert (tmp_path / "b" / "manifest.json").stat().st_mtime >= begun - 1


def test_who_tidies_up_holds_what_he_removes(tmp_path: Path) -> None:
    """Else a directory that another process has just made, and is about to hold, would go under its hands."""
    dead = tmp_path / ".out.partial-1-2"
    dead.mkdir()
    for path, kind in leftovers(tmp_path / "out"):
        assert (path, kind) == (dead, "partial")
        with pytest.raises(BlockingIOError):
            Claim(dead, tries=1)
    Claim(dead).close()


def test_what_is_moved_away_while_it_is_being_claimed_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who held it puts it in place just then; to go on would be to write into what is finished."""
    making, lock = tmp_path / ".out.unpacking-1", unfinished._lock
    making.mkdir()

    def late(handle: int, tries: int) -> None:
        lock(handle, tries)
        making.rename(tmp_path / "out")

    monkeypatch.setattr(unfinished, "_lock", late)
    with pytest.raises(BlockingIOError):
        Claim(making)


def test_a_directory_taken_for_a_leftover_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, removed = tmp_path / ".out.partial-1-2", False

    class Late(Claim):
        def __init__(self, path: Path) -> None:
            nonlocal removed
            if not removed:
                path.rmdir()
            removed = True
            super().__init__(path)

    monkeypatch.setattr(unfinished, "Claim", Late)
    own = own_directory(made)
    assert removed and made.is_dir()
    with pytest.raises(BlockingIOError):
        Claim(made, tries=1)
    own.close()
