"""The gateway's process: an agent's OpenAI endpoint that records every call in Kafka before the
answer is complete.

Writes `llm.calls`, `agent.status` and `agent.rewards`; reads the policy topics and
`prompt.updates`, and of `llm.calls` the responses that requests build on. It keeps no state but a
cache and idempotency keys.
`python -m services.gateway.main` serves it. SIGTERM lets streams end and flushes the producer.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.runtime.process_secrets import hide_from_other_processes
from services.gateway.app import create_app
from services.gateway.http.connection import KEEP_ALIVE_S, protocol_class, raise_open_files
from services.gateway.http.error_handlers import on_unexpected_error
from services.gateway.http.front_door import FrontDoor
from services.gateway.settings import GatewaySettings


def serve(settings: GatewaySettings, kafka: KafkaSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    app = create_app(settings, kafka)
    # Half of the open files are for clients, a quarter for those waiting to be accepted, the rest
    # for upstreams, Kafka and the disk.
    files = raise_open_files()
    # Around the app only, not around calls: a call does not need its client's address, and uvicorn
    # would look for a proxy's headers in each.
    behind_proxies = ProxyHeadersMiddleware(
        cast(Any, app), os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
    )
    uvicorn.run(
        FrontDoor(cast(ASGIApp, behind_proxies), app.state.hot, on_unexpected_error),
        proxy_headers=False,
        server_header=False,
        host=settings.gateway_host,
        port=settings.gateway_port,
        access_log=False,
        log_config=None,
        http=protocol_class(
            settings.client_write_timeout_s, settings.request_timeout_s, files // 2
        ),
        timeout_graceful_shutdown=settings.drain_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=min(4096, files // 4),
        lifespan="on",
    )


def main() -> None:
    """Read the settings from the environment, and serve. Exits with 0 after SIGTERM and SIGINT,
    which uvicorn raises again when it is done.
    """
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    hide_from_other_processes()
    settings = GatewaySettings()  # pyright: ignore[reportCallIssue]
    logs.configure("gateway", settings.log_level)
    serve(settings, KafkaSettings())


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(run_service("gateway", main, shows_metrics=False))
