"""The spool: what was stored is there after a crash, in order, within its bound, for one process at
a time.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from services.gateway.recording import spool_file
from services.gateway.recording.spool import Spool, SpoolError, SpoolFull, SpoolInUse
from services.gateway.recording.spool_file import framed_size

MIB = 1024 * 1024


def crash(spool: Spool) -> None:
    """As the system does when a process dies: its locks go, nothing else happens."""
    os.close(spool._lock)  # pyright: ignore[reportPrivateUsage]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def everything(spool: Spool) -> list[bytes]:
    found: list[bytes] = []
    while payloads := await spool.front():
        found += payloads
        spool.drop(len(payloads))
    return found


async def test_stored_payloads_come_back_in_order_and_leave_no_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB)
    wanted = [b"%d" % number for number in range(500)]
    await asyncio.gather(*(spool.append(payload) for payload in wanted))
    assert (spool.depth, spool.bytes) == (500, sum(map(framed_size, wanted)))
    assert await everything(spool) == wanted
    assert (spool.depth, spool.bytes) == (0, 0)
    assert names(tmp_path) == ["lock"]
    await spool.append(b"again")
    assert await everything(spool) == [b"again"]
    await spool.close()


async def test_what_is_appended_while_the_disk_syncs_shares_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        os.fdatasync(descriptor)

    monkeypatch.setattr(spool_file.os, "fsync", fsync)
    spool = Spool(tmp_path, MIB)
    first = spool.append(b"first")
    await asyncio.sleep(0)
    await asyncio.gather(first, *(spool.append(b"more") for _ in range(200)))
    # The first file, its folder, and one for all that came meanwhile.
    assert len(synced) == 3
    await spool.close()


async def test_after_a_crash_the_next_process_finds_what_was_stored_and_adds_to_it(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path, MIB)
    await asyncio.gather(*(spool.append(b"%d" % number) for number in range(10)))
    payloads = await spool.front()
    assert list(payloads)[:2] == [b"0", b"1"]
    spool.drop(4)
    crash(spool)
    again = Spool(tmp_path, MIB)
    assert again.depth == 10, "some come twice, none is lost"
    await again.append(b"new")
    assert await everything(again) == [b"%d" % number for number in range(10)] + [b"new"]
    await again.close()


async def test_files_are_removed_as_they_are_done_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.recording.spool.SEGMENT_BYTES", 100)
    spool = Spool(tmp_path, MIB)
    for number in range(20):
        await spool.append(b"%030d" % number)
    assert len(names(tmp_path)) > 6
    for _ in range(10):
        await spool.front()
        spool.drop(1)
    assert len(names(tmp_path)) < 7
    crash(spool)
    again = Spool(tmp_path, MIB)
    assert (await everything(again))[-1] == b"%030d" % 19
    await again.close()


async def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB)
    with pytest.raises(SpoolInUse, match="another gateway that runs"):
        Spool(tmp_path, MIB)
    await spool.close()
    await Spool(tmp_path, MIB).close()


async def test_a_full_spool_refuses_until_something_is_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    await spool.append(b"x" * 72)
    with pytest.raises(SpoolFull, match="is full"):
        spool.append(b"x" * 20)
    assert not spool.full
    await spool.append(b"x" * 4)
    assert spool.full, "though there is some room for what is under way"
    await spool.front()
    spool.drop(1)
    await spool.append(b"x" * 20)
    await spool.close()


async def test_a_disk_that_refuses_is_told_and_the_next_file_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, MIB)
    await spool.append(b"before")

    def fails(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool_file.os, "fsync", fails)
        with pytest.raises(SpoolError, match="No space left on device"):
            await spool.append(b"lost")
        assert "No space left" in (spool.broken or "")
        assert spool.depth == 1
    await spool.append(b"after")
    assert spool.broken is None
    assert await everything(spool) == [b"before", b"after"]
    await spool.close()


async def test_a_payload_that_nobody_can_read_keeps_its_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB)
    await spool.append(b"?")
    await spool.front()
    spool.drop(1, unreadable=True)
    assert names(tmp_path) == ["000000000001.torn", "lock"]
    await spool.close()
