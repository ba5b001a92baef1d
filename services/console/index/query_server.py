"""Answers queries of other processes while this one has the index open (`index.remote`).

The socket is for the file's owner alone, as the file is.
"""

from __future__ import annotations

import os
import socketserver
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from services.console.index.answers import Query
from services.console.index.errors import BadQuery, IndexFailed
from services.console.index.reader import IndexReader
from services.console.index.remote import LONGEST_QUERY, Reply, socket_path

MOST_BYTES = 64 * 1024**2
"""Of an answer. The console holds it twice while it is sent: as values, and packed."""


class QueryServer:
    """Answers queries until closed."""

    def __init__(self, index: Path, timeout_s: float, most_bytes: int = MOST_BYTES) -> None:
        """Begin to answer. The caller has the index open, so that a socket left there is stale."""
        self._path = socket_path(index)
        self._path.unlink(missing_ok=True)
        reader = IndexReader(index, timeout_s=timeout_s, most_bytes=most_bytes)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                query = self.rfile.read(LONGEST_QUERY + 1)
                # The reader may have gone.
                with suppress(OSError):
                    self.wfile.write(msgspec.msgpack.encode(_reply(reader, query), enc_hook=str))

        before = os.umask(0o177)
        try:
            self._server = _Server(str(self._path), Handler)
        finally:
            os.umask(before)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="index-queries", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def _reply(reader: IndexReader, data: bytes) -> Reply:
    if len(data) > LONGEST_QUERY:
        return Reply(bad_query=f"a query has at most {LONGEST_QUERY:,} bytes")
    try:
        query = msgspec.msgpack.decode(data, type=Query)
        return Reply(answer=reader.ask(query.sql, query.parameters, query.limit))
    except (BadQuery, msgspec.MsgspecError) as error:
        return Reply(bad_query=str(error))
    except IndexFailed as error:
        return Reply(error=str(error))
