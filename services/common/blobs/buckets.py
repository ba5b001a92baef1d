"""Stores payloads in object storage: `s3://bucket/folder`, `gs://…`, `abfss://…`.

It uses pyarrow's file systems (extra `archive`). Addresses and secrets come from the environment,
as each provider's own tools read them (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
`AWS_ENDPOINT_URL`, …). They must not be in the URL, which every claim check holds.
"""

# pyarrow has no types of its own.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import urlparse

from services.common.blobs.blob_store import StoredPayload
from services.common.runtime.extras import how_to_install


class Bucket:
    """A folder of a bucket."""

    def __init__(self, url: str) -> None:
        """Open the folder. Raises ValueError."""
        self._url = url.rstrip("/")
        self._store, self._root = _opened(self._url)

    def put(self, name: str, payload: bytes) -> str:
        """See `services.common.blobs.blob_store.Place`. Always writes, which makes the object
        young.

        Object stores write an object completely or not at all.
        """
        key = f"{name[:2]}/{name}"
        with self._store.open_output_stream(f"{self._root}/{key}") as stream:
            stream.write(payload)
        return f"{self._url}/{key}"

    def found(self) -> Iterator[StoredPayload]:
        """See `services.common.blobs.blob_store.Place`."""
        selector = import_module("pyarrow.fs").FileSelector(
            self._root, recursive=True, allow_not_found=True
        )
        for entry in self._store.get_file_info(selector):
            name = str(entry.base_name)
            if entry.is_file and entry.path.endswith(f"/{name[:2]}/{name}"):
                yield StoredPayload(
                    name, f"{self._url}/{name[:2]}/{name}", int(entry.size), _modified(entry)
                )

    def remove(self, left: StoredPayload) -> bool:
        """See `services.common.blobs.blob_store.Place`."""
        path = f"{self._root}/{left.name[:2]}/{left.name}"
        (entry,) = self._store.get_file_info([path])
        if not entry.is_file or _modified(entry) > left.modified_s:
            return False
        self._store.delete_file(path)
        return True


def read(uri: str, size: int) -> bytes:
    """Read a payload of this size. Raises OSError, ValueError."""
    folder, _, name = uri.rpartition("/")
    store, root = _opened(folder.rpartition("/")[0])
    (entry,) = store.get_file_info([f"{root}/{name[:2]}/{name}"])
    if not entry.is_file or int(entry.size) != size:
        raise ValueError(f"it is not what was stored there: not an object of {size:,} bytes")
    with store.open_input_stream(f"{root}/{name[:2]}/{name}") as stream:
        return bytes(stream.read())


@cache
def _opened(url: str) -> tuple[Any, str]:
    """Open the file system of a URL; returns it and the path."""
    location = urlparse(url)
    if location.username or location.password or location.query:
        raise ValueError(
            f"FULGURITE_CLAIMS_URL={location.scheme}://…: it may only have scheme, bucket and "
            "folder. Set secrets and addresses as environment variables."
        )
    try:
        store, root = import_module("pyarrow.fs").FileSystem.from_uri(url)
    except ImportError as error:
        raise ValueError(
            f"FULGURITE_CLAIMS_URL={url}: object storage needs pyarrow: {how_to_install('archive')}"
        ) from error
    return store, str(root).rstrip("/")


def _modified(entry: Any) -> float:
    return float(entry.mtime.timestamp())
