"""edgekit with an emulated phone, and with both emulated devices at once: what they compute, and that no time counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import BundleWriter
from tests.support.emulated_devices import DROID, PI, Devices, set_up
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import linear_bundle
from tools import emulation_host as host
from tools.demo_models import minilm

pytestmark = pytest.mark.xdist_group("emulated devices")  # one pair of them
BALLAST = 200_000_000
INCOMING = "data/local/tmp/edgekit/incoming"


def test_one_command_verifies_a_real_model_everywhere(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    bundle = tmp_path / "minilm"
    done = devices.edgekit("export", str(minilm()), "--recipe", "int8", "-o", str(bundle))
    assert done.returncode == 0, done.stderr
    done = devices.edgekit("verify", str(bundle), "--target", "local", "--target", pi, "--target", droid)
    assert done.returncode == 0, done.stderr
    head, *rows, verdict = done.stdout.splitlines()
    assert head.split("  ")[0] == "target" and "agrees with local" in head and verdict == "verdict: PASS"
    assert [row.split()[:2] for row in rows] == [[target, "PASS"] for target in ("local", pi, droid)]
    assert all(row.count("PASS") == 3 for row in rows[1:])


def test_no_time_of_an_emulated_device_counts(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    arguments = ("bench", str(tmp_path / "b"), "--prompt-tokens", "4", "--new-tokens", "4")
    done = devices.edgekit(*arguments, "--target", pi, "--target", droid)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for target, reason in ((pi, "its processes are run by qemu"), (droid, "an emulator's system property is set")):
        rows = [i for i, line in enumerate(lines) if line.startswith(f"{target} ")]
        assert [lines[i].split()[2] for i in rows] == ["prefill", "decode"]
        for i in rows:
            assert lines[i + 1].lstrip().startswith(f"INVALID: an emulated device ({reason})")
        assert f"  EMULATED ({reason}): results count, times do not" in lines
    conditions = "[cores 4-7, 47 to 47 °C, ondemand, battery 87 to 87 %, 0.0 mAh]"
    assert any(line.endswith(conditions) for line in lines), "the phone's fast cores, and what it tells of itself"


def test_the_same_tokens_everywhere(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    answers = []
    for target in ("local", pi, droid):
        done = devices.edgekit("generate", str(tmp_path / "b"), "a", "--raw", "-n", "8", "--json", "--target", target)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["tokens"])
    assert len(set(answers[0])) > 1 and answers[1:] == answers[:1] * 2


def test_the_phones_operator_uses_what_the_processor_has(devices: Devices, droid: str, tmp_path: Path) -> None:
    linear_bundle(tmp_path / "b", "t2")
    for isa, used in (("", "neon_dotprod"), ("neon", "neon")):
        chosen = {"EDGEKIT_ISA": isa} if isa else {}
        done = devices.edgekit("verify", str(tmp_path / "b"), "--target", droid, **chosen)
        assert done.returncode == 0, done.stderr
        assert f"TernaryMatMul: native operator ({used})" in done.stdout and done.stdout.endswith("verdict: PASS\n")
    done = devices.edgekit("verify", str(tmp_path / "b"), "--target", droid, EDGEKIT_ISA="neon_i8mm")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        f"edgekit: {droid}: EDGEKIT_ISA=neon_i8mm: this processor cannot run it; it has neon_dotprod neon scalar"
    )


def test_the_phone_dies_while_files_travel(devices: Devices, droid: str, tmp_path: Path) -> None:
    light = linear_bundle(tmp_path / "light")
    with BundleWriter(tmp_path / "b") as writer:
        shutil.copytree(light.directory, writer.directory, dirs_exist_ok=True)
        (writer.directory / "ballast.bin").write_bytes(np.random.default_rng(3).bytes(BALLAST))
        writer.commit(light.manifest)
    arguments = ("verify", str(tmp_path / "b"), "--target", droid)
    code, said = devices.killed("droid", arguments, lambda _: arrived() > BALLAST // 100)
    assert code == 2 and said[-1].startswith(f"edgekit: {droid}: ") and "Traceback" not in "\n".join(said)
    devices.tool("start", "droid")
    assert 0 < arrived() < BALLAST, "what had come stays, and is gone on with"
    done = devices.edgekit(*arguments)
    assert done.returncode == 0, done.stderr
    assert arrived() == 0 and done.stdout.endswith("verdict: PASS\n")


def test_the_phone_dies_while_the_model_runs(devices: Devices, droid: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    arguments = ("verify", str(tmp_path / "b"), "--target", droid)
    code, said = devices.killed("droid", arguments, lambda line: "replay golden vectors" in line)
    assert code == 2 and said[-1].startswith(f"edgekit: {droid}: ") and "Traceback" not in "\n".join(said)
    devices.tool("start", "droid")
    done = devices.edgekit(*arguments)
    assert done.returncode == 0, done.stderr


def test_older_and_newer_processors(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    linear_bundle(tmp_path / "b", "t2")
    devices.tool("up", "--pi-cpu", "cortex-a72", "--droid-cpu", "max")
    try:
        set_up(devices, PI)
        set_up(devices, DROID)
        done = devices.edgekit("verify", str(tmp_path / "b"), "--target", pi, "--target", droid)
        assert done.returncode == 0, done.stderr
        rows = {row.split()[0]: row for row in done.stdout.splitlines()}
        for target, isa in ((PI, "neon"), (DROID, "neon_i8mm")):
            assert f"native operator ({isa})" in rows[target] and rows[target].split()[1] == "PASS"
    finally:
        devices.tool("up")


def arrived() -> int:
    """Bytes of the largest file that is on its way to the phone."""
    files = (host.STATE / "droid" / "upper" / INCOMING).glob("*")
    return max((path.stat().st_size for path in files), default=0)
