"""As much of S3 as claims need, in memory, over HTTP: whole and multipart uploads, reads, listings,
removal. Any signature is good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlparse

Objects = dict[str, tuple[bytes, float]]
"""`bucket/key` → content, and when it was written."""


@contextmanager
def running_s3(bucket: str) -> Generator[tuple[str, Objects]]:
    """Its address, and what it holds."""
    objects: Objects = {}

    class Handler(_S3):
        held = objects
        own = bucket
        parts: ClassVar = dict[str, bytes]()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _S3(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: ClassVar[Objects]
    own: ClassVar[str]
    parts: ClassVar[dict[str, bytes]]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent."""

    def _path(self) -> tuple[str, dict[str, list[str]]]:
        location = urlparse(self.path)
        return location.path.strip("/"), parse_qs(location.query, keep_blank_values=True)

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "content_length" not in headers:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        chunked = self.headers.get("transfer-encoding") == "chunked"
        body = (
            b"".join(self._chunks())
            if chunked
            else self.rfile.read(int(self.headers.get("content-length", 0)))
        )
        return (
            _unchunked(body) if "aws-chunked" in self.headers.get("content-encoding", "") else body
        )

    def _chunks(self) -> Iterator[bytes]:
        """Of HTTP."""
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_PUT(self) -> None:
        """A whole object, a part of one, or the mark of a folder."""
        key, query = self._path()
        body = self._body()
        if "partNumber" in query:
            self.parts[key] = self.parts.get(key, b"") + body
        elif key != self.own and body:
            self.held[key] = (body, time.time())
        self._reply(200, ETag='"x"')

    def do_POST(self) -> None:
        """The beginning and the end of a multipart upload."""
        key, query = self._path()
        self._body()
        if "uploads" in query:
            self._reply(
                200,
                b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
            )
        else:
            self.held[key] = (self.parts.pop(key), time.time())
            self._reply(
                200,
                b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>",
            )

    def do_GET(self) -> None:
        """An object, a range of it, or a listing."""
        key, query = self._path()
        if "list-type" in query:
            self._reply(200, self._listing(key, query.get("prefix", [""])[0]))
            return
        if key not in self.held:
            self._reply(404)
            return
        content, at = self.held[key]
        _, _, asked = self.headers.get("range", "bytes=0-").partition("=")
        first, _, last = asked.partition("-")
        piece = content[int(first) : int(last) + 1 if last else None]
        where = f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"
        self._reply(206, piece, Last_Modified=formatdate(at, usegmt=True), Content_Range=where)

    def do_HEAD(self) -> None:
        """Of an object, or of the bucket."""
        key, _ = self._path()
        if key == self.own:
            self._reply(200)
        elif key in self.held:
            content, at = self.held[key]
            self._reply(
                200, content_length=str(len(content)), Last_Modified=formatdate(at, usegmt=True)
            )
        else:
            self._reply(404)

    def do_DELETE(self) -> None:
        """An object."""
        self.held.pop(self._path()[0], None)
        self._reply(204)

    def _listing(self, bucket: str, prefix: str) -> bytes:
        entries = "".join(
            f"<Contents><Key>{key.removeprefix(bucket + '/')}</Key><Size>{len(content)}</Size>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(at))}</LastModified></Contents>"
            for key, (content, at) in self.held.items()
            if key.startswith(f"{bucket}/{prefix}")
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def _unchunked(body: bytes) -> bytes:
    """AWS's chunks, within those of HTTP."""
    whole = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        whole, body = whole + body[:size], body[size + 2 :]
        if not size:
            break
    return whole
