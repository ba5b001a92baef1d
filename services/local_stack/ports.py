"""Free ports, and whether something answers on one. No check here raises."""

from __future__ import annotations

import http.client
import socket

LOCALHOST = "127.0.0.1"
_TIMEOUT_S = 1.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago; all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOCALHOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Whether a TCP connection is accepted."""
    try:
        with socket.create_connection((LOCALHOST, port), _TIMEOUT_S):
            return True
    except OSError:
        return False


def answers(
    port: int, path: str, headers: dict[str, str] | None = None, timeout_s: float = _TIMEOUT_S
) -> bool:
    """Whether a GET is answered with a 2xx."""
    connection = http.client.HTTPConnection(LOCALHOST, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers=headers or {})
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
