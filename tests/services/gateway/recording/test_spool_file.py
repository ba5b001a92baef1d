"""The spool's file format: whatever a crash leaves of a file, the frames before it are read and
nothing else is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.recording.spool_file import MAGIC, Segment, frame, framed_size, frames

PAYLOADS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(PAYLOADS)
def test_frames_are_read_as_they_were_written(payloads: list[bytes]) -> None:
    data = b"".join(map(frame, payloads))
    assert frames(data) == (payloads, len(data))
    assert len(data) == sum(map(framed_size, payloads))


@pytest.mark.parametrize(
    "rest",
    [b"", bytes(7), bytes(4096), b"\xff" * 30],
    ids=["cut", "zeros", "page of zeros", "garbage"],
)
def test_a_torn_tail_at_every_byte_costs_only_what_was_not_whole(
    tmp_path: Path, rest: bytes
) -> None:
    payloads = [b"one", b"three" * 9, b"x"]
    whole = MAGIC + b"".join(map(frame, payloads))
    ends = [len(MAGIC)]
    for payload in payloads:
        ends.append(ends[-1] + framed_size(payload))
    for cut in range(len(whole)):
        path = tmp_path / "torn.spool"
        path.write_bytes(whole[:cut] + rest)
        segment, found = Segment.recover(path)
        complete = sum(end <= cut for end in ends) - 1
        assert found == payloads[: max(0, complete)], cut
        assert segment.keep == (
            len(whole[:cut] + rest) > (ends[complete] if complete >= 0 else 0)
        ), cut


@given(PAYLOADS.filter(bool), st.data())
def test_a_changed_bit_is_noticed(payloads: list[bytes], data: st.DataObject) -> None:
    written = bytearray(b"".join(map(frame, payloads)))
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= 1 << data.draw(st.integers(0, 7))
    found, end = frames(bytes(written))
    assert found == payloads[: len(found)]
    assert end <= place
    assert len(found) < len(payloads)


def test_an_empty_payload_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        frame(b"")


def test_a_segment_is_read_in_pieces_however_small(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "1.spool")
    assert segment.read_next(100) == []
    payloads = [b"a" * size for size in (1, 30, 2, 500)]
    segment.append(b"".join(map(frame, payloads[:3])))
    segment.append(frame(payloads[3]))
    found: list[bytes] = []
    while piece := segment.read_next(20):
        found += piece
    assert found == payloads
    assert Segment.recover(segment.path)[1] == payloads


def test_a_file_that_was_torn_is_put_aside_when_it_is_done_with(tmp_path: Path) -> None:
    path = tmp_path / "7.spool"
    path.write_bytes(MAGIC + frame(b"whole") + frame(b"torn")[:-1])
    segment, found = Segment.recover(path)
    assert found == [b"whole"]
    segment.remove()
    assert [left.name for left in tmp_path.iterdir()] == ["7.torn"]
