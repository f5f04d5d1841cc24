"""A device over a real sshd: this machine, with a home directory of its own. Skipped where sshd is not installed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import export, generate
from edgekit.devices import Target, open_connection
from edgekit.devices.generation import generate_on
from edgekit.devices.transfer import remove
from edgekit.errors import BundleError, RuntimeUnavailable, UsageError
from edgekit.parity import verify
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import linear_bundle
from tests.support.tiny_pictures import picture_directory
from tests.support.tiny_translators import translator_directory
from tests.support.tooling import require
from tests.unit.test_verify import faulty

SSHD = "/usr/sbin/sshd"
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
SetEnv HOME={home}
"""
CLIENT = """
Host pi
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking accept-new
Host stranger
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/none
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking accept-new
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The device's home directory; ``ssh:pi`` reaches it."""
    require(
        Path(SSHD).exists() and shutil.which("ssh") is not None, "sshd is not installed: apt-get install openssh-server"
    )
    folder, place = tmp_path_factory.mktemp("ssh"), tmp_path_factory.mktemp("home") / "with space"
    place.mkdir()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd").write_text(CONFIG.format(port=port, folder=folder, home=f'"{place}"'))
    (folder / "client").write_text(CLIENT.format(port=port, folder=folder))
    Path("/run/sshd").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        patch.setenv("EDGEKIT_SSH_CONFIG", str(folder / "client"))
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd"], stderr=log)
        _wait(server, port)
        yield place
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd ended")


@pytest.fixture(scope="module")
def pi(home: Path) -> str:
    """The device with ONNX Runtime, installed as a user would."""
    done = edgekit("devices", "setup", "ssh:pi", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["installed"].startswith("onnxruntime 1.29.0, Python 3")
    return "ssh:pi"


def edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgekit", *arguments], capture_output=True, text=True, check=False)


def test_before_setup_it_says_so(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable) as failure:
        verify(linear_bundle(tmp_path / "b"), target="ssh:pi")
    assert str(failure.value) == ("ssh:pi: ONNX Runtime is not set up there; run `edgekit devices setup ssh:pi` once")
    assert list(home.iterdir()) == []


def test_a_device_says_what_it_is(home: Path) -> None:
    done = edgekit("devices", "show", "ssh:pi", "--json")
    (facts,) = json.loads(done.stdout)["devices"]
    assert facts["machine"] == os.uname().machine and len(facts["cores"]) == os.cpu_count()
    assert facts["memory_mb"] > 100 and facts["page_size"] == 4096 and facts["emulated"] == ""
    assert list(home.iterdir()) == []


def test_a_good_bundle_passes_there(pi: str, tmp_path: Path) -> None:
    report = verify(decoder_bundle(tmp_path / "b"), target=pi)
    assert report.passed and report.target == pi
    assert report.versions["device"].startswith("onnxruntime 1.29.0")
    assert report.kernel.startswith("FusedMatMul")


def test_the_operator_runs_there(pi: str, tmp_path: Path) -> None:
    report = verify(linear_bundle(tmp_path / "b", "t2"), target=pi)
    assert report.passed and "TernaryMatMul: native operator" in report.kernel


def test_a_fault_is_traced_to_its_layer_there(pi: str, tmp_path: Path) -> None:
    report = verify(decoder_bundle(tmp_path / "b", graph_weights=faulty(1)), target=pi)
    assert not report.passed
    assert [layer.layer for layer in report.layers if layer.first] == ["layers.1"]


def test_the_command_line_verifies_there(pi: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    done = edgekit("verify", str(tmp_path / "b"), "--target", pi)
    assert done.returncode == 0, done.stderr
    assert f"on {pi}, 1 thread" in done.stdout and done.stdout.endswith("verdict: PASS\n")


def test_several_machines_end_in_one_table(pi: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    done = edgekit("verify", str(tmp_path / "b"), "--target", "local", "--target", pi, "--target", "ssh:stranger")
    lines = done.stdout.splitlines()
    assert done.returncode == 2, done.stderr
    assert [line.split()[0] for line in lines] == ["target", "local", "ssh:pi", "ssh:stranger:", "verdict:"]
    assert "PASS" in lines[2] and "Permission denied" in lines[3]
    assert edgekit("verify", str(tmp_path / "b"), "--target", "local", "--target", pi).returncode == 0


def test_it_is_measured_there(pi: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    linear_bundle(tmp_path / "t", "t2")
    small = ("--prompt-tokens", "30", "--new-tokens", "12", "--rounds", "5")
    done = edgekit("bench", str(tmp_path / "b"), str(tmp_path / "t"), "--target", pi, *small, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(row["target"], row["phase"]) for row in found["rows"]] == [
        (pi, "prefill"),
        (pi, "decode"),
        (pi, "latency"),
    ]
    prefill, decode, latency = found["rows"]
    assert prefill["tokens_per_second"] == pytest.approx(30e3 / prefill["p50_ms"]) and decode["samples"] == 60
    assert "TernaryMatMul: native operator" in latency["kernel"] and decode["rss_peak_mb"] > 10
    assert found["devices"][0]["target"] == pi and found["failures"] == {}
    too_many = edgekit("bench", str(tmp_path / "t"), "--target", pi, "-t", "1000")
    assert too_many.returncode == 2 and "1000 threads asked for, the device has" in too_many.stdout


def test_a_translator_is_verified_and_translates_there(pi: str, tmp_path: Path) -> None:
    translator_directory(tmp_path / "model")
    bundle = export(tmp_path / "model", "fp32", tmp_path / "t5", abis=())
    assert verify(bundle, target=pi).passed
    there = generate_on(Target.parse(pi), bundle, "Hello there", max_new_tokens=12)
    here = generate(bundle, "Hello there", max_new_tokens=12)
    assert "".join(there) == "".join(here)
    assert there.tokens == here.tokens and len(here.tokens) > 1


def test_a_picture_is_seen_there(pi: str, tmp_path: Path) -> None:
    picture_directory(tmp_path / "model")
    bundle = export(tmp_path / "model", "fp32", tmp_path / "smolvlm", abis=())
    assert verify(bundle, target=pi).passed
    photo = Path(__file__).parents[2] / "edgekit/frontend/data/photos/chelsea.jpg"
    there = generate_on(Target.parse(pi), bundle, "What is it?", images=[photo], max_new_tokens=12)
    here = generate(bundle, "What is it?", images=[photo], max_new_tokens=12)
    assert "".join(there) == "".join(here)
    assert there.tokens == here.tokens and len(here.tokens) > 1


def test_text_is_generated_there(pi: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    arguments = ("generate", str(tmp_path / "b"), "hello there", "--json", "-n", "20")
    here, there = edgekit(*arguments), edgekit(*arguments, "--target", pi)
    assert there.returncode == 0, there.stderr
    expected, found = json.loads(here.stdout), json.loads(there.stdout)
    assert found["tokens"] == expected["tokens"] and found["text"] == expected["text"] and len(found["tokens"]) > 1
    assert found["finish"] == expected["finish"] and found["prefill_tokens_per_second"] > 0
    sampled = edgekit(*arguments, "--target", pi, "--temperature", "1")
    assert sampled.returncode == 2 and "takes the likeliest token each time; leave out sampling" in sampled.stdout


def test_generation_there_can_be_left(pi: str, tmp_path: Path) -> None:
    bundle, target = decoder_bundle(tmp_path / "b"), Target.parse(pi)
    running = generate_on(target, bundle, "a", chat=False, max_new_tokens=40)
    next(running)
    running.cancel()
    assert list(running) == [] or running.finish == "cancelled"
    stopped = generate_on(target, bundle, "hello there", max_new_tokens=20, stop=["\ufffd"])
    assert "\ufffd" not in "".join(stopped) and stopped.finish in ("stop", "length")
    with pytest.raises(UsageError, match="max_new_tokens: 0 is less than 1"):
        generate_on(target, bundle, "a", max_new_tokens=0)
    with pytest.raises(UsageError, match=r"prompt: \d+ tokens; the context holds 64"):
        generate_on(target, bundle, "a" * 100)


def test_a_file_that_changed_there_is_found(pi: str, home: Path, tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b", shift=1e-6)
    verify(bundle, target=pi)
    (graph,) = (
        g for g in home.glob(".edgekit-device/bundles/*/model.onnx") if g.read_bytes() == bundle.graph_path.read_bytes()
    )
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"ssh:pi: model.onnx: FAILED: the file on the device is not the bundle's"):
        verify(bundle, target=pi)
    graph.unlink()
    assert verify(bundle, target=pi).parity.count


def test_an_instruction_set_that_it_lacks(pi: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = linear_bundle(tmp_path / "b", "t2")
    monkeypatch.setenv("EDGEKIT_ISA", "neon_i8mm")
    with pytest.raises(
        RuntimeUnavailable, match="ssh:pi: EDGEKIT_ISA=neon_i8mm: this processor cannot run it; it has "
    ):
        verify(bundle, target=pi)


def test_a_host_that_refuses_or_is_not_there(home: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"ssh:stranger: ssh could not connect: .*Permission denied"):
        open_connection(Target.parse("ssh:stranger"))
    with pytest.raises(RuntimeUnavailable, match=r"ssh:no.such.host.invalid: ssh could not connect: .*resolve"):
        open_connection(Target.parse("ssh:no.such.host.invalid"))


def test_what_is_for_this_machine_only(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="target ssh:pi: --original, --text and --labels are for 'local' only"):
        verify(bundle, target="ssh:pi", text=tmp_path / "t.txt")


def test_cleaning_leaves_nothing(pi: str, home: Path) -> None:
    assert [p.name for p in home.iterdir()] == [".edgekit-device"]
    done = edgekit("devices", "clean", pi)
    assert done.returncode == 0 and done.stdout == f"ssh:pi: {home}/.edgekit-device is gone\n"
    assert list(home.iterdir()) == []
    with open_connection(Target.parse(pi)) as connection:
        remove(connection)
