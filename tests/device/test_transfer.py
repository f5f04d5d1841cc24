"""Files to a device: only what is missing, resumed, proved, and nothing outside the one directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekit.devices import transfer
from edgekit.devices.transfer import Item, push, remove
from edgekit.errors import RuntimeUnavailable
from tests.support.shell_connection import ShellConnection

ODD = 'a file\'s "name" $HOME.bin'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.devices.transfer.time.sleep", lambda seconds: None)


def item(folder: Path, name: str, data: bytes, path: str = "") -> Item:
    source = folder / name
    source.write_bytes(data)
    return Item(source, path or f"bundles/b/{name}", hashlib.sha256(data).hexdigest(), len(data))


def test_files_arrive_once(tmp_path: Path) -> None:
    connection = ShellConnection(tmp_path / "device")
    items = [item(tmp_path, ODD, bytes(range(256)) * 5000), item(tmp_path, "empty", b"")]
    shares: list[float] = []
    assert push(connection, items, lambda what, share: shares.append(share)) == 1_280_000
    assert shares == sorted(shares) and shares[-1] == 1.0
    for one in items:
        assert (tmp_path / "device" / one.path).read_bytes() == one.source.read_bytes()
    assert push(connection, items) == 0
    changed = item(tmp_path, ODD, b"new")
    assert push(connection, [changed, items[1]]) == 3
    assert (tmp_path / "device" / changed.path).read_bytes() == b"new"
    assert list((tmp_path / "device" / "incoming").iterdir()) == []


def test_what_the_device_has_elsewhere_is_copied(tmp_path: Path) -> None:
    connection = ShellConnection(tmp_path / "device")
    push(connection, [item(tmp_path, "w", b"x" * 1000)])
    again = item(tmp_path, "w", b"x" * 1000, "bundles/other/w")
    assert push(connection, [again]) == 0
    assert (tmp_path / "device" / again.path).read_bytes() == b"x" * 1000


def test_a_copy_that_was_damaged_there_is_not_taken(tmp_path: Path) -> None:
    connection = ShellConnection(tmp_path / "device")
    first = item(tmp_path, "w", b"x" * 1000)
    push(connection, [first])
    (tmp_path / "device" / first.path).write_bytes(b"y" * 1000)
    again = item(tmp_path, "w", b"x" * 1000, "bundles/other/w")
    assert push(connection, [again]) == 1000
    assert (tmp_path / "device" / again.path).read_bytes() == b"x" * 1000


def test_a_file_of_another_size_is_sent_again(tmp_path: Path) -> None:
    connection, one = ShellConnection(tmp_path / "device"), item(tmp_path, "w", b"x" * 1000)
    push(connection, [one])
    (tmp_path / "device" / one.path).write_bytes(b"cut")
    assert push(connection, [one]) == 1000
    assert (tmp_path / "device" / one.path).read_bytes() == b"x" * 1000


def test_a_broken_link_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    connection, one = ShellConnection(tmp_path / "device", limit=300_000, breaks=2), item(tmp_path, "w", data)
    push(connection, [one])
    assert (tmp_path / "device" / one.path).read_bytes() == data


def test_a_link_that_stays_down_says_so_and_keeps_what_arrived(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    connection, one = ShellConnection(tmp_path / "device", limit=100_000, breaks=3), item(tmp_path, "w", data)
    with pytest.raises(RuntimeUnavailable) as failure:
        push(connection, [one])
    assert str(failure.value) == (
        "ssh:here: link down; 3 tries; what arrived is kept, and the next call goes on from there"
    )
    assert not (tmp_path / "device" / one.path).exists()
    assert (tmp_path / "device" / "incoming" / one.sha256).stat().st_size == 300_000
    push(connection, [one])
    assert (tmp_path / "device" / one.path).read_bytes() == data


def test_bytes_that_changed_on_the_way_never_get_their_name(tmp_path: Path) -> None:
    connection, one = ShellConnection(tmp_path / "device"), item(tmp_path, "w", b"x" * 1000)
    one.source.write_bytes(b"y" * 1000)
    with pytest.raises(RuntimeUnavailable, match="w: its sha256 is not the one that was sent"):
        push(connection, [one])
    assert not (tmp_path / "device" / one.path).exists()
    assert list((tmp_path / "device" / "incoming").iterdir()) == []


def test_a_full_device_is_found_before_anything_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SPARE_BYTES", 1 << 60)
    connection, one = ShellConnection(tmp_path / "device"), item(tmp_path, "w", b"x")
    with pytest.raises(
        RuntimeUnavailable, match=r"MB free in .*device, \d+ MB needed; `edgekit devices clean` removes"
    ):
        push(connection, [one])
    assert not (tmp_path / "device" / "incoming").exists()


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    connection = ShellConnection(tmp_path / "device")
    push(connection, [item(tmp_path, "w", b"x")])
    remove(connection)
    assert not (tmp_path / "device").exists()
    remove(connection)
