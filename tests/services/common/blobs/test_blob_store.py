"""The claims store, a folder or a bucket: content-addressed, whole or not there, and proved when it
is read.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.calls.claim_checks import leave, payload_of
from fulgurite.errors import BadClaim
from fulgurite.events import ClaimCheck
from services.common.blobs.blob_store import ClaimStore, Folder, fetch, open_store, redeemed
from tests.services.s3_in_memory import running_s3
from tests.synthetic import make_call

CALL = make_call(messages=[{"role": "user", "content": "x" * 10_000}])


def test_a_payload_lies_under_its_digest_once(tmp_path: Path) -> None:
    store = open_store((tmp_path / "a folder").as_uri(), Path("elsewhere"))
    claim = store.put(payload_of(CALL))
    assert store.put(payload_of(CALL)) == claim
    (path,) = [found for found in tmp_path.rglob("*") if found.is_file()]
    assert (path.name, path.parent.name, path.stat().st_size) == (
        claim.sha256,
        claim.sha256[:2],
        claim.size,
    )
    assert redeemed(leave(CALL, claim)) == CALL
    assert redeemed(CALL) is CALL


def test_what_is_missing_altered_or_elsewhere_is_told(tmp_path: Path) -> None:
    claim = open_store("", tmp_path).put(payload_of(CALL))
    (path,) = [found for found in tmp_path.rglob("*") if found.is_file()]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BadClaim, match="is not what"):
        redeemed(leave(CALL, claim))
    path.unlink()
    with pytest.raises(BadClaim, match="No such file"):
        redeemed(leave(CALL, claim))
    with pytest.raises(BadClaim, match="nowhere://"):
        redeemed(leave(CALL, msgspec.structs.replace(claim, uri="nowhere://bucket/x/y")))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        ConnectionRefusedError(111, "refused"),
        TimeoutError(),
    ],
)
def test_a_store_that_is_away_makes_no_bad_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    claim = open_store("", tmp_path).put(payload_of(CALL))

    def away(*_: object) -> int:
        raise error

    monkeypatch.setattr("services.common.blobs.blob_store.os.open", away)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        redeemed(leave(CALL, claim))
    assert raised.value is error


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("services.common.blobs.blob_store.os.fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        ClaimStore(Folder(tmp_path)).put(b"payload")
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]


def test_what_is_left_again_is_young_again_and_stays(tmp_path: Path) -> None:
    store = open_store("", tmp_path)
    claim = store.put(b"payload")
    (path,) = [found for found in tmp_path.rglob("*") if found.is_file()]
    os.utime(path, (1_000, 1_000))
    (old,) = store.found()
    assert (old.name, old.size, old.modified_s, old.uri) == (claim.sha256, 7, 1_000, claim.uri)
    store.put(b"payload")
    assert not store.remove(old)
    (young,) = store.found()
    assert store.remove(young)
    assert not list(store.found())


def test_a_bucket_keeps_the_same_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3("bucket") as (address, objects):
        for name, value in {
            "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-1",
            "AWS_EC2_METADATA_DISABLED": "true", "FULGURITE_CLAIMS_URL": "s3://new",
            "FULGURITE_CLAIMS_FORMER_URLS": "s3://bucket/some/claims/, s3://x",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        store = open_store("s3://bucket/some/claims", Path("elsewhere"))
        claim = store.put(payload_of(CALL))
        assert claim.uri == f"s3://bucket/some/claims/{claim.sha256[:2]}/{claim.sha256}"
        assert list(objects) == [claim.uri.removeprefix("s3://")]
        assert redeemed(leave(CALL, claim)) == CALL
        (found,) = store.found()
        assert (found.name, found.size, found.uri) == (claim.sha256, claim.size, claim.uri)
        assert not store.remove(msgspec.structs.replace(found, modified_s=found.modified_s - 1)), (
            "left again since"
        )
        assert store.remove(found)
        assert not objects
        with pytest.raises(BadClaim, match="cannot be read"):
            redeemed(leave(CALL, claim))


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://bucket/x?secret_key=secret"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="environment") as caught:
        open_store(url, tmp_path)
    assert "secret" not in str(caught.value).replace("secrets and addresses", "")


def test_only_regular_files_under_their_digest_and_of_their_size_are_read(tmp_path: Path) -> None:
    claim = open_store("", tmp_path).put(payload_of(CALL))
    (path,) = [found for found in tmp_path.rglob("*") if found.is_file()]

    def refused(**changes: object) -> str:
        with pytest.raises(BadClaim) as caught:
            redeemed(leave(CALL, msgspec.structs.replace(claim, **changes)))
        return str(caught.value)

    for uri in (
        "//[",
        "file:///dev/zero",
        "file:///dev/stdin",
        "file:///etc/passwd",
        "",
        "x" * 100_000,
        "file:///%00/a",
        "s3://[/x/y",
    ):
        assert re.search("cannot be read|is not the URI of a payload", refused(uri=uri))
    assert len(refused(uri="x" * 100_000)) < 1_000
    assert "is not the URI of a payload" in refused(
        sha256="../../etc/passwd", uri="file:///tmp/../../etc/passwd"
    )
    assert "not a file of" in refused(size=claim.size + 1)
    assert "not in a known bucket" in refused(
        uri=f"s3://elsewhere/{claim.sha256[:2]}/{claim.sha256}"
    )
    path.rename(tmp_path / "moved")
    os.mkfifo(path)
    assert "not a file of" in refused()
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "cannot be read" in refused()
    path.unlink()
    path.mkdir()
    assert "cannot be read" in refused()


@given(
    st.text(max_size=40) | st.sampled_from(["file:///", "s3://", "http://[::1", "file://host/"]),
    st.text(max_size=70),
    st.integers(-5, 2**40),
)
def test_a_claim_of_anything_is_a_bad_claim(start: str, name: str, size: int) -> None:
    for sha256 in (name, "ab" * 32):
        with pytest.raises(BadClaim):
            fetch(ClaimCheck(uri=f"{start}/{sha256[:2]}/{sha256}", sha256=sha256, size=size))
