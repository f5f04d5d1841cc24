"""Processes that are stopped, that get in each other's way, or whose output nobody takes: one message, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.cli import main
from edgekit.coding import pack, unpack
from edgekit.errors import UsageError
from edgekit.unfinished import Claim
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import linear_bundle
from tests.support.wide_bundle import wide_bundle

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals, /dev/full and file locks are of Unix")
EDGEKIT = [sys.executable, "-m", "edgekit"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_bundle(tmp_path_factory.mktemp("bundles") / "b").directory


def run(*arguments: str | Path, stdout: int | None = None, shell: str = "") -> subprocess.CompletedProcess[str]:
    command = [*EDGEKIT, *map(str, arguments)]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)


# A full disk behind stdout, and a reader that goes

CALLS = [
    ("inspect", "B"),
    ("inspect", "B", "--json"),
    ("verify", "B"),
    ("verify", "B", "--json"),
    ("--help",),
    ("recipes",),
]
CALLS += [
    ("generate", "B", "Hello", "-n", "3"),
    ("inspect", "/nowhere", "--json"),
    ("--version",),
    ("inspect", "--help"),
]


def filled(call: tuple[str, ...], bundle: Path) -> list[str]:
    return [str(bundle) if word == "B" else word for word in call]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_full_disk_behind_stdout(bundle: Path, call: tuple[str, ...]) -> None:
    done = run(*filled(call, bundle), shell="> /dev/full")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line[6:8] != " s"]  # progress
    assert lines == ["edgekit: the output cannot be written (No space left on device); give it a place with room"]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_nobody_reads_the_output(bundle: Path, call: tuple[str, ...]) -> None:
    """The shell's convention: 128 + SIGPIPE, and not a word."""
    done = run(*filled(call, bundle), shell="| true; echo ${PIPESTATUS[0]}")
    assert done.stdout == "141\n"
    assert "Traceback" not in done.stderr and "edgekit:" not in done.stderr


def test_the_first_line_and_no_more(bundle: Path) -> None:
    done = run("inspect", bundle, shell="| head -1; echo ${PIPESTATUS[0]}")
    assert done.stdout.splitlines()[-1] in ("0", "141")  # whether all was written before head went
    assert done.stderr == ""


@pytest.mark.parametrize("redirection", ["2> /dev/full", "> /dev/full 2> /dev/full", ">&- 2>&-", ">&-"])
def test_other_ends_of_the_streams(bundle: Path, redirection: str) -> None:
    for call in (("inspect", "B"), ("inspect", "/nowhere", "--json"), ("generate", "B", "Hello", "-n", "2")):
        done = run(*filled(call, bundle), shell=redirection)
        assert done.returncode in (0, 2)
        assert "Traceback" not in done.stderr


def test_a_pack_from_a_closed_stdin(tmp_path: Path) -> None:
    done = run("unpack", "-", "-o", tmp_path / "x", shell="<&-")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "edgekit: - is stdin, which is closed; give the pack as a file or through a pipe"
    )


# Signals

INSIDE = """
import sys, time
from pathlib import Path
import edgekit.coding.packing as packing, edgekit.coding.unpacking as unpacking, edgekit.bundle.writing as writing
def wait(*args, **kwargs):
    Path(sys.argv[1]).touch()
    time.sleep(600)
for room, name in ((packing, "_file_chunks"), (unpacking, "decode_chunk")):
    setattr(room, name, wait)
from edgekit.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("verb", ["pack", "unpack", "resume"])
def test_a_signal_while_packing(bundle: Path, tmp_path: Path, verb: str, name: str) -> None:
    ready, output = tmp_path / "ready", tmp_path / "out"
    output.mkdir()
    source = bundle
    if verb != "pack":
        source = tmp_path / "x.edgepack"
        pack(bundle, source)
    words = [
        verb.replace("resume", "unpack"),
        str(source),
        "-o",
        str(output / "made"),
        *["--resume"] * (verb == "resume"),
    ]
    # What a shell runs in the background ignores Ctrl-C, and under nohup SIGHUP.
    code = "import signal; [signal.signal(s, h) for s, h in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL))]\n"
    with subprocess.Popen(
        [sys.executable, "-c", code + INSIDE, str(ready), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=1800)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "edgekit: interrupted; nothing half-written was kept"
    assert "Traceback" not in said
    kept = [path.name for path in output.iterdir()]
    assert [name for name in kept if ".partial-" in name or name == "made"] == []
    assert len(kept) == (verb == "resume")  # what --resume goes on from


# Two at once


def test_two_that_unpack_to_one_place(tmp_path: Path) -> None:
    """Whoever comes second is refused or finds the bundle there; the bundle is whole."""
    wide_bundle(tmp_path / "b")
    pack(tmp_path / "b", tmp_path / "x.edgepack")
    for number in range(4):
        target = tmp_path / f"out{number}"
        words = ["unpack", str(tmp_path / "x.edgepack"), "-o", str(target), "--resume"]
        both = [
            subprocess.Popen([*EDGEKIT, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=1800)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 2], [0, 0]), said
        for process, text in zip(both, said, strict=True):
            if process.returncode:
                assert "another process unpacks the same pack" in text or "a bundle is there already" in text, text
        Bundle.open(target).check_hashes()
        assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_second_is_refused_while_the_first_unpacks(bundle: Path, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "x.edgepack")
    cut = tmp_path / "part"
    cut.write_bytes((tmp_path / "x.edgepack").read_bytes()[:-100])
    with pytest.raises(Exception, match="chunks are there"):
        unpack(cut, tmp_path / "out", resume=True)
    (kept,) = tmp_path.glob(".out.unpacking-*")
    claim = Claim(kept)
    with pytest.raises(UsageError, match="another process unpacks the same pack to the same place; wait for its end"):
        unpack(tmp_path / "x.edgepack", tmp_path / "out", resume=True)
    claim.close()
    unpack(tmp_path / "x.edgepack", tmp_path / "out", resume=True).check_hashes()


def test_leftovers_of_other_packs_are_held_while_they_are_removed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that another process has just begun to unpack into would go under its hands."""
    pack(bundle, tmp_path / "x.edgepack")
    other, remove, held = tmp_path / ".out.unpacking-0123456789abcdef", shutil.rmtree, []
    other.mkdir()

    def removing(path: Path, ignore_errors: bool = False) -> None:
        if path == other:
            with pytest.raises(BlockingIOError):
                Claim(path, tries=1)
            held.append(path)
        remove(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", removing)
    unpack(tmp_path / "x.edgepack", tmp_path / "out")
    assert held == [other] and not other.exists()


HELD = """
import sys, time
from pathlib import Path
from edgekit.bundle import BundleWriter
with BundleWriter(Path(sys.argv[1])) as writer:
    (writer.directory / "half").write_bytes(b"x")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a process-id namespace needs root")
def test_leftovers_of_another_container_are_cleaned_and_its_work_is_not(tmp_path: Path) -> None:
    """In a namespace of its own the process has number 1 or 2, which exists here too and is something else."""
    inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", HELD, str(tmp_path / "b")]
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces here")
    with subprocess.Popen(inside, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        (left,) = tmp_path.glob(".b.partial-*")
        assert os.path.exists(f"/proc/{left.name.split('-')[1]}")
        linear_bundle(tmp_path / "b", "int4")
        assert left.is_dir()  # still at work
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait()
    linear_bundle(tmp_path / "b", "int4")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


# No room, no permission


def on_a_small_disk(directory: Path, size: str) -> bool:
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_the_disk_fills_up(tmp_path: Path, verb: str) -> None:
    disk = tmp_path / "disk"
    if not on_a_small_disk(disk, "64k"):
        pytest.skip("no small file system can be mounted here")
    try:
        decoder_bundle(tmp_path / "b")
        noise = np.random.default_rng(0).bytes(1 << 20)
        source = tmp_path / "b"
        if verb == "pack":
            for file in ("tokenizer.json",):
                assert (tmp_path / "b" / file).stat().st_size > 0
        else:
            pack(tmp_path / "b", tmp_path / "x.edgepack")
            source = tmp_path / "x.edgepack"
        (disk / "other").write_bytes(noise[: 60 << 10])
        done = run(verb, source, "-o", disk / "made")
        assert done.returncode == 1
        assert "make room" in done.stderr.splitlines()[-1], done.stderr
        assert [path.name for path in disk.iterdir()] == ["other"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        place = tmp_path / "fixed"
        if not on_a_small_disk(place, "1m"):
            pytest.skip("nothing can be mounted here")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        return place

    return make


def test_a_place_that_cannot_be_written(bundle: Path, tmp_path: Path, read_only: Callable[[], Path]) -> None:
    pack(bundle, tmp_path / "x.edgepack")
    fixed = read_only()
    try:
        for words in (
            ("pack", bundle, "-o", fixed / "x"), ("unpack", tmp_path / "x.edgepack", "-o", fixed / "b"),
            ("unpack", tmp_path / "x.edgepack", "-o", fixed / "b", "--resume"), ("pack", bundle, "-o", "/proc/x"),
            ("export", tmp_path, "--recipe", "int4", "-o", fixed / "b"), ("unpack", tmp_path / "x.edgepack", "-o", "/sys/b"),
            ("generate", bundle, "Hello", "-n", "2", "--session", fixed / "s"),
        ):  # fmt: skip
            done = run(*words)
            assert done.returncode == 2, done.stderr
            assert "cannot be" in done.stderr.splitlines()[-1], done.stderr
            assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(fixed)], check=True)


# compress

CONFIG = """version: 1
data:
  train: ["tests.unit.test_compress:points"]
method: prune
prune: {{sparsity: 0.7, steps: 30, every: 5}}
training: {{steps: {steps}, learning_rate: 0.01, checkpoint_every: {every}}}
"""


def compress(folder: Path, output: Path, *more: str, steps: int = 40, every: int = 4) -> list[str]:
    config = folder / f"compress-{steps}-{every}.yaml"
    config.write_text(CONFIG.format(steps=steps, every=every), encoding="utf-8")
    return ["compress", "tests.unit.test_compress:classifier", "-c", str(config), "-o", str(output), *more]


def steps_kept(checkpoint: Path) -> int:
    """The last step whose checkpoint is whole; 0 without one."""
    return max((int(p.name.removeprefix("step-")) for p in checkpoint.glob("step-*") if not p.suffix), default=0)


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    assert run(*compress(tmp_path, tmp_path / "whole", steps=40)).returncode == 0
    output, checkpoint = tmp_path / "often", tmp_path / ".often.checkpoint"
    for kill in range(2):
        kept = steps_kept(checkpoint)
        words = compress(tmp_path, output, *["--resume"] * bool(kept), steps=40)
        with subprocess.Popen([*EDGEKIT, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and steps_kept(checkpoint) <= kept:
                time.sleep(0.002)
            time.sleep(0.003 * kill)  # also while the next one is written
            process.kill()
        assert steps_kept(checkpoint)
    done = run(*compress(tmp_path, output, "--resume", steps=40))
    assert done.returncode == 0, done.stderr
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("every", "message"), [(4, "the checkpoint cannot be written"), (1000, "out: cannot be written")]
)
def test_the_disk_fills_up_while_compressing(tmp_path: Path, every: int, message: str) -> None:
    disk = tmp_path / "disk"
    if not on_a_small_disk(disk, "16k"):
        pytest.skip("no small file system can be mounted here")
    try:
        (disk / "other").write_bytes(bytes(12 << 10))
        done = run(*compress(tmp_path, disk / "out", every=every))
        assert done.returncode == 1, done.stderr
        assert message in done.stderr.splitlines()[-1] and "make room" in done.stderr.splitlines()[-1]
        assert [path.name for path in disk.iterdir()] == ["other"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_compress_looks_first_whether_its_place_can_be_written(tmp_path: Path, read_only: Callable[[], Path]) -> None:
    fixed = read_only()
    try:
        done = run(*compress(tmp_path, fixed / "out"))
        assert done.returncode == 2
        assert f"{fixed / 'out'}: cannot be made ({fixed} is read-only)" in done.stderr.splitlines()[-1]
    finally:
        subprocess.run(["umount", str(fixed)], check=True)


# bench


@pytest.mark.parametrize(
    ("name", "array"), [("vectors/text.safetensors", True), ("model.onnx", False), ("manifest.json", False)]
)
def test_bench_of_a_damaged_bundle(tmp_path: Path, name: str, array: bool) -> None:
    directory = decoder_bundle(tmp_path / "b").directory
    data = bytearray((directory / name).read_bytes())
    start = len(data) // 2 if array else 0
    data[start : start + 64] = b"\xff" * 64
    (directory / name).write_bytes(data)
    done = run("bench", directory, "--rounds", "5")
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and "edgekit: " in done.stderr


# Paths of every kind


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "x" * 5000), ("verify", "x" * 5000), ("pack", "B", "-o", "x" * 5000), ("unpack", "x" * 5000, "-o", "y"),
        ("generate", "B", "Hello", "-n", "1", "--session", "x" * 5000), ("unpack", "/proc/self/mem", "-o", "/nowhere/y"),
        ("unpack", "/proc/self/mem", "-o", "/nowhere/y", "--resume"), ("inspect", "/dev/null"), ("unpack", "/dev/null", "-o", "/nowhere/y"),
    ],
    ids=lambda words: " ".join(word[:9] for word in words),
)  # fmt: skip
def test_a_path_that_nothing_can_be_done_with(
    bundle: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(filled(words, bundle))
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert "Traceback" not in said and said.splitlines()[-1].startswith("edgekit: ")
