"""Packs of whole bundles: byte for byte the same again, in one go, piecewise, as a difference, and signed."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.cli import main
from edgekit.coding import native, pack, packing, unpack
from edgekit.coding.header import Front, read_front
from edgekit.errors import BundleError, CheckFailed, RuntimeUnavailable, UnsupportedError, UsageError
from tests.support.tiny_bundle import Weights, decoder_bundle
from tests.support.tiny_models import linear_bundle
from tests.support.wide_bundle import wide_bundle

VECTORS = Path(__file__).parent.parent / "vectors" / "packs"
FORMATS = ("fp32", "int8", "int4", "int4-fp16", "t2")


def same(one: Path, other: Path) -> None:
    """Both directories hold the same files, and nothing else."""
    names = [sorted(str(p.relative_to(d)) for p in d.rglob("*") if p.is_file()) for d in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def front_of(path: Path) -> Front:
    with path.open("rb") as file:
        return read_front(file, str(path))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A pack of several chunks, m.edgepack, made from the bundle b."""
    pack(wide_bundle(tmp_path / "b"), tmp_path / "m.edgepack")
    return tmp_path / "m.edgepack"


@pytest.mark.parametrize("format_name", [*FORMATS, "decoder", "wide"])
def test_a_bundle_comes_back_byte_for_byte(format_name: str, tmp_path: Path) -> None:
    make: dict[str, Any] = {"decoder": decoder_bundle, "wide": wide_bundle}
    source = make.get(format_name, lambda path: linear_bundle(path, format_name))(tmp_path / "b")
    made = pack(source, tmp_path / "m.edgepack")
    assert made.bytes == (tmp_path / "m.edgepack").stat().st_size < made.bundle_bytes
    again = unpack(tmp_path / "m.edgepack", tmp_path / "c")
    again.check_hashes()
    same(source.directory, again.directory)
    assert left_behind(tmp_path) == []
    assert pack(again, tmp_path / "n.edgepack").bytes == made.bytes
    assert (tmp_path / "n.edgepack").read_bytes() == (tmp_path / "m.edgepack").read_bytes()


@pytest.mark.parametrize("format_name", ["int8", "int4", "int4-fp16", "t2"])
def test_ternary_weights_take_1_6_bits_in_every_format(format_name: str, tmp_path: Path) -> None:
    """The weight of linear_bundle is ternary; its scales are one number a row or 128 columns."""
    made = pack(linear_bundle(tmp_path / "b", format_name), tmp_path / "m.edgepack")
    assert made.bits_per_weight is not None and 1.55 < made.bits_per_weight < 1.63


def test_without_the_library_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = linear_bundle(tmp_path / "b", "int4")
    pack(source, tmp_path / "m.edgepack")
    monkeypatch.setattr(native, "load", lambda: None)
    pack(source, tmp_path / "n.edgepack")
    assert (tmp_path / "n.edgepack").read_bytes() == (tmp_path / "m.edgepack").read_bytes()
    same(source.directory, unpack(tmp_path / "m.edgepack", tmp_path / "c").directory)


def test_no_library_is_found_where_none_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "NATIVE", tmp_path)
    assert native.load.__wrapped__() is None


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    for name in (".m.edgepack.partial-999999999-1", ".m.edgepack.partial-x", ".other.partial-999999999-1"):
        (tmp_path / name).write_text("")
    pack(linear_bundle(tmp_path / "b"), tmp_path / "m.edgepack")
    assert left_behind(tmp_path) == [".m.edgepack.partial-x", ".other.partial-999999999-1"]


@pytest.mark.parametrize("name", ["old", "delta"])
def test_packs_of_the_first_version_can_still_be_read(name: str, tmp_path: Path) -> None:
    """tests/vectors/packs: written once, with every kind of stream and segment; see its README."""
    found = unpack(VECTORS / "old.edgepack", tmp_path / "old")
    if name == "delta":
        found = unpack(VECTORS / "delta.edgepack", tmp_path / "delta", base=found)
    digest = hashlib.sha256((found.directory / "manifest.json").read_bytes()).hexdigest()
    assert digest in (VECTORS / "README.md").read_text(encoding="utf-8")


def test_a_bundle_too_large_for_a_pack_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LARGEST_BUNDLE", 10_000)
    with pytest.raises(UnsupportedError, match=r"b: [\d,]+ bytes, a pack holds 10,000 at most$"):
        pack(linear_bundle(tmp_path / "b"), tmp_path / "m.edgepack")
    assert not (tmp_path / "m.edgepack").exists()


def test_a_name_that_is_no_text_is_packed(tmp_path: Path) -> None:
    """Half a surrogate pair, which JSON can say and UTF-8 cannot."""
    linear_bundle(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"name": "tiny"', '"name": "\\ud800"'), encoding="utf-8")
    pack(Bundle.open(tmp_path / "b"), tmp_path / "m.edgepack")
    same(tmp_path / "b", unpack(tmp_path / "m.edgepack", tmp_path / "c").directory)


# The command line


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, file, target = (str(tmp_path / name) for name in ("b", "m.edgepack", "c"))
    linear_bundle(tmp_path / "b", "int4")
    code, out, err = run(capsys, "pack", bundle, "-o", file, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["bytes"] == Path(file).stat().st_size and facts["weights"] == 65_536
    assert facts["bits_per_weight"] == 8 * facts["weight_bytes"] / 65_536 and "pack model.onnx.data" in err
    assert {entry["path"] for entry in facts["files"]} >= {"manifest.json", "model.onnx", "model.onnx.data"}
    assert run(capsys, "pack", bundle, "-o", file)[::2] == (
        2, f"edgekit: {file}: is there already; --force replaces it\n",
    )  # fmt: skip
    code, out, _ = run(capsys, "pack", bundle, "-o", file, "--force")
    assert code == 0 and "  weights 1.5" in out and "65,536 of them" in out
    code, out, err = run(capsys, "unpack", file, "-o", target)
    listed = Bundle.open(target).manifest.files
    assert code == 0
    assert out == f"{target}: {len(listed) + 1} files, {Bundle.open(target).nbytes:,} bytes, as the manifest says\n"
    assert "unpack model.onnx.data" in err
    same(Path(bundle), Path(target))
    assert "a bundle is there already; --force replaces it" in run(capsys, "unpack", file, "-o", target)[2]
    assert run(capsys, "unpack", file, "-o", target, "--force", "--json")[0] == 0
    assert run(capsys, "unpack", str(tmp_path / "none"), "-o", target)[2].startswith(
        f"edgekit: {tmp_path / 'none'}: cannot be read (No such file or directory)"
    )


def test_a_pack_from_stdin(packed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "unpack", "-", "-o", str(tmp_path / "c")]
    with packed.open("rb") as file:
        cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        done = subprocess.run(command, stdin=cat.stdout, capture_output=True, text=True)
        cat.communicate()
    assert done.returncode == 0, done.stderr
    same(tmp_path / "b", tmp_path / "c")


def test_what_is_written_is_a_file_and_what_is_packed_is_whole(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match=r"b: is there already; -o names a file$"):
        pack(bundle, tmp_path / "b", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: is no pack; give -o another name \(nothing was changed\)$"):
        pack(bundle, tmp_path / "file", force=True)
    with pytest.raises(UsageError, match=r"cannot be written \(.+\); give -o a place that can be written$"):
        pack(bundle, tmp_path / "file" / "m.edgepack")
    data = bytearray((tmp_path / "b" / "model.onnx.data").read_bytes())
    data[7] ^= 1
    (tmp_path / "b" / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx\.data: sha256 is not the manifest's; the file was changed"):
        pack(bundle, tmp_path / "m.edgepack")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "file"]


# Resuming


def test_a_download_that_broke_off_goes_on(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    part = tmp_path / "part"
    front = front_of(packed)
    chunks = [chunk.packed for file in front.head.files for chunk in file.chunks]
    assert len(chunks) >= 6
    ends = [front.size + sum(chunks[:count]) for count in (0, 2, 2, len(chunks) - 1)]
    for end, kept in zip(ends, (0, 2, 2, len(chunks) - 1), strict=True):
        part.write_bytes(whole[: end + 1])
        with pytest.raises(CheckFailed) as refusal:
            unpack(part, tmp_path / "c", resume=True)
        assert str(refusal.value) == (
            f"{part}: {kept} of {len(chunks)} chunks are there and were unpacked; go on with the download "
            f"at byte {end + 1:,} of {len(whole):,} and run this again"
        )
        assert not (tmp_path / "c").exists()
    part.write_bytes(whole)
    made = unpack(part, tmp_path / "c", resume=True)
    same(tmp_path / "b", made.directory)
    assert left_behind(tmp_path) == []


def test_what_was_unpacked_before_is_not_unpacked_again(packed: Path, tmp_path: Path) -> None:
    """The first chunks of the second attempt are replaced by nonsense, which nobody reads."""
    whole = bytearray(packed.read_bytes())
    front = front_of(packed)
    first = [chunk.packed for file in front.head.files for chunk in file.chunks][:3]
    part = tmp_path / "part"
    part.write_bytes(whole[: front.size + sum(first)])
    with pytest.raises(CheckFailed, match="3 of "):
        unpack(part, tmp_path / "c", resume=True)
    whole[front.size : front.size + sum(first)] = bytes(sum(first))
    part.write_bytes(whole)
    (tmp_path / ".c.unpacking-of-another-pack").mkdir()
    same(tmp_path / "b", unpack(part, tmp_path / "c", resume=True).directory)
    assert left_behind(tmp_path) == []


def test_resuming_from_a_stream(packed: Path, tmp_path: Path) -> None:
    class Stream(io.BytesIO):
        name = "<stdin>"

        def seekable(self) -> bool:
            return False

        def fileno(self) -> int:
            raise OSError

    whole = packed.read_bytes()
    with pytest.raises(BundleError, match=r"^<stdin>: ends at byte [\d,]+ of [\d,]+; go on with the download there"):
        unpack(Stream(whole[:-1]), tmp_path / "c")
    with pytest.raises(CheckFailed, match=r"^<stdin>: "):
        unpack(Stream(whole[:-1]), tmp_path / "c", resume=True)
    same(tmp_path / "b", unpack(Stream(whole), tmp_path / "c", resume=True).directory)


def test_kept_pieces_that_were_damaged_are_found_and_dropped(packed: Path, tmp_path: Path) -> None:
    whole, part = packed.read_bytes(), tmp_path / "part"
    part.write_bytes(whole[:-1])
    with pytest.raises(CheckFailed):
        unpack(part, tmp_path / "c", resume=True)
    (kept,) = tmp_path.glob(".c.unpacking-*")
    data = bytearray((kept / "model.onnx.data").read_bytes())
    data[5] ^= 1
    (kept / "model.onnx.data").write_bytes(data)
    with pytest.raises(
        BundleError, match=r"'model\.onnx\.data' does not have the sha256 of the manifest when unpacked"
    ):
        unpack(packed, tmp_path / "c", resume=True)
    assert left_behind(tmp_path) == []
    same(tmp_path / "b", unpack(packed, tmp_path / "c", resume=True).directory)


def test_without_resume_nothing_is_kept(packed: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"part: ends at byte [\d,]+ of [\d,]+; go on with the download there, or"):
        unpack(part, tmp_path / "c")
    assert left_behind(tmp_path) == [] and not (tmp_path / "c").exists()


# Differences between versions


def changed(seed: int = 0, share: float = 0.02) -> Weights:
    """Weights of which a few differ from ``Weights(0)``."""
    weights, random = Weights(0), np.random.default_rng(seed)
    for name in ("embed", "1.qkv"):
        array = weights.arrays[name].copy()
        array[random.random(array.shape) < share] *= np.float32(1.01)
        weights.arrays[name] = array
    return weights


def test_a_delta_holds_only_what_differs(tmp_path: Path) -> None:
    old = wide_bundle(tmp_path / "old")
    new = wide_bundle(tmp_path / "new", changed=0.01)
    whole = pack(new, tmp_path / "whole")
    delta = pack(new, tmp_path / "delta", base=old)
    assert delta.copied >= 1 and delta.bytes < 0.25 * whole.bytes
    assert f"  {delta.copied} of {delta.chunks} chunks are the base version's" in list(delta.lines())
    same(new.directory, unpack(tmp_path / "delta", tmp_path / "c", base=old).directory)
    nothing = pack(old, tmp_path / "same", base=old)
    assert nothing.copied == nothing.chunks and nothing.bytes < 3000
    same(old.directory, unpack(tmp_path / "same", tmp_path / "d", base=old).directory)


def test_a_delta_between_decoders(tmp_path: Path) -> None:
    old, new = decoder_bundle(tmp_path / "old"), decoder_bundle(tmp_path / "new", changed())
    assert pack(new, tmp_path / "delta", base=old).bytes < pack(new, tmp_path / "whole").bytes
    same(new.directory, unpack(tmp_path / "delta", tmp_path / "c", base=old).directory)


def test_a_delta_between_bundles_of_other_tensors(tmp_path: Path) -> None:
    old, new = linear_bundle(tmp_path / "old", "int8"), linear_bundle(tmp_path / "new", "int4")
    pack(new, tmp_path / "delta", base=old)
    same(new.directory, unpack(tmp_path / "delta", tmp_path / "c", base=old).directory)


def test_a_delta_needs_its_own_base(tmp_path: Path) -> None:
    old, new = wide_bundle(tmp_path / "old"), wide_bundle(tmp_path / "new", changed=0.01)
    pack(new, tmp_path / "delta", base=old)
    with pytest.raises(
        UsageError, match=r"holds only what differs from an older version .* give that bundle as --base$"
    ):
        unpack(tmp_path / "delta", tmp_path / "c")
    with pytest.raises(
        UsageError, match=r"--base .*new has [0-9a-f]{16}\.\.\.; give the version that it was made from$"
    ):
        unpack(tmp_path / "delta", tmp_path / "c", base=new)
    data = bytearray((old.directory / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (old.directory / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match="base version"):
        unpack(tmp_path / "delta", tmp_path / "c", base=Bundle.open(old.directory))
    assert not (tmp_path / "c").exists() and left_behind(tmp_path) == []


# Signatures


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two pairs of keys, me and you, and an RSA key."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    folder = tmp_path / "keys"
    folder.mkdir()
    private = (form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = (form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    for name in ("me", "you"):
        key = ed25519.Ed25519PrivateKey.generate()
        (folder / name).write_bytes(key.private_bytes(*private))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(*public))
    (folder / "rsa").write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(*private))
    return folder


def test_a_signed_pack_is_taken_from_its_owner_only(tmp_path: Path, keys: Path) -> None:
    bundle = linear_bundle(tmp_path / "b", "int4")
    made = pack(bundle, tmp_path / "signed", sign=keys / "me")
    pack(bundle, tmp_path / "plain")
    assert made.signed and "  signed" in list(made.lines())
    same(bundle.directory, unpack(tmp_path / "signed", tmp_path / "c", verify_key=keys / "me.pub").directory)
    unpack(tmp_path / "signed", tmp_path / "d")
    with pytest.raises(BundleError, match=r"signed: its signature is not by the owner of .*you\.pub, or its head was"):
        unpack(tmp_path / "signed", tmp_path / "e", verify_key=keys / "you.pub")
    with pytest.raises(BundleError, match=r"plain: is not signed, and .*me\.pub was to prove who made it"):
        unpack(tmp_path / "plain", tmp_path / "e", verify_key=keys / "me.pub")
    assert not (tmp_path / "e").exists()


def test_keys_of_another_kind_are_refused(tmp_path: Path, keys: Path) -> None:
    bundle = linear_bundle(tmp_path / "b", "int4")
    for name in ("rsa", "me.pub"):
        with pytest.raises(
            UsageError, match=r"holds no private Ed25519 key in PEM without a password; openssl genpkey"
        ):
            pack(bundle, tmp_path / "m", sign=keys / name)
    with pytest.raises(UsageError, match=r"none: cannot be read \(No such file or directory\); give the file of an"):
        pack(bundle, tmp_path / "m", sign=keys / "none")
    pack(bundle, tmp_path / "m")
    with pytest.raises(UsageError, match=r"me: holds no public Ed25519 key"):
        unpack(tmp_path / "m", tmp_path / "c", verify_key=keys / "me")


def test_without_cryptography_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cryptography", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        RuntimeUnavailable, match=r'cryptography, which is not installed: pip install "edgekit\[sign\]"$'
    ):
        pack(linear_bundle(tmp_path / "b"), tmp_path / "m", sign=tmp_path / "key")
