"""Calls vLLM's RL routes: its version, loading weights in flight, log-probabilities of a prompt.

Weights are read and compared with the model's while the engine generates. Only then it is paused,
with `mode=keep`: requests in flight continue afterwards, with the new weights. The
prefix cache is then reset together with those requests (`reset_running_requests`). Otherwise vLLM
keeps the cache while any request runs, and later prompts would use the old weights' keys and
values.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import aiohttp

from services.applier.errors import EngineRefused, EngineUnreachable, LoadBroken

_CONNECT_TIMEOUT_S = 2.0


class Engine:
    """The client of one vLLM server. Use it as an async context manager."""

    def __init__(self, base_url: str, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        self._session: aiohttp.ClientSession | None = None
        self._model: str | None = None

    async def __aenter__(self) -> Self:
        # A new connection for each call: the server closes it after an error of its own, and a POST
        # must not be sent on a closed connection.
        connector = aiohttp.TCPConnector(force_close=True)
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=self._timeout, connector=connector
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def weight_version(self) -> str:
        """Ask which version it serves; `default` means the weights it was started with.

        Raises EngineRefused, EngineUnreachable.
        """
        return str((await self._call("GET", "/weight_info"))["weight_version"])

    async def is_paused(self) -> bool:
        """Whether generation is paused."""
        return bool((await self._call("GET", "/is_paused"))["is_paused"])

    async def resume(self) -> None:
        """Resume generation."""
        await self._call("POST", "/resume")

    async def read_ahead(self, path: str) -> None:
        """Have the engine read weights into its machine's memory; returns at once.

        Raises EngineRefused, EngineUnreachable.
        """
        await self._call("POST", "/init_weight_transfer_engine", json={"init_info": {"path": path}})

    async def load(self, path: str, version: str, *, rollback: bool = False) -> float:
        """Replace the weights and their version while requests are in flight.

        Returns the seconds in which nothing was generated. Raises EngineRefused (nothing was
        loaded), LoadBroken, EngineUnreachable.
        """
        await self._start_update()
        update_info = {"path": path, "version": version, "rollback": rollback}
        await self._call("POST", "/update_weights", json={"update_info": update_info})
        paused_at = time.monotonic()
        await self._call("POST", "/pause", params={"mode": "keep"})
        try:
            await self._call("POST", "/finish_weight_update", json={"weight_version": version})
            reset = await self._call(
                "POST", "/reset_prefix_cache", params={"reset_running_requests": "true"}
            )
        except EngineRefused as error:
            raise LoadBroken(str(error)) from error
        finally:
            await self.resume()
        if not reset.get("success"):
            raise LoadBroken(
                f"the prefix cache still holds keys and values of the old weights: {reset}"
            )
        return time.monotonic() - paused_at

    async def adapters(self) -> list[str]:
        """List the names of its LoRA adapters."""
        listed = cast("list[dict[str, Any]]", (await self._call("GET", "/v1/models"))["data"])
        return [str(model["id"]) for model in listed if model.get("parent")]

    async def load_adapter(self, name: str, folder: str) -> None:
        """Load an adapter in PEFT's layout. Requests in flight are not affected.

        Raises EngineRefused, EngineUnreachable.
        """
        await self._call(
            "POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": folder}
        )

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter. Requests in flight still finish with it."""
        await self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": name})

    async def prompt_logprobs(
        self, token_ids: Sequence[int], model: str | None = None
    ) -> list[float]:
        """Log-probability of each token but the first, given those before it; one value per token.

        They are computed again, never taken from the cache. `model`: an adapter.
        """
        name = model or await self._served_model()
        body = {
            "model": name,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        reply = await self._call("POST", "/v1/completions", json=body)
        listed = cast(
            "list[dict[str, dict[str, Any]] | None]", reply["choices"][0]["prompt_logprobs"]
        )
        return [
            float(entry[str(token)]["logprob"])
            for token, entry in zip(token_ids[1:], listed[1:], strict=True)
            if entry is not None
        ]

    async def _start_update(self) -> None:
        try:
            await self._call("POST", "/start_weight_update")
        except EngineRefused:
            # An applier died during an update and left it open. vLLM refuses an empty update, and
            # closes an update that it refuses.
            with contextlib.suppress(EngineRefused):
                await self._call("POST", "/update_weights", json={"update_info": {}})
            await self._call("POST", "/start_weight_update")

    async def _served_model(self) -> str:
        if self._model is None:
            self._model = str((await self._call("GET", "/v1/models"))["data"][0]["id"])
        return self._model

    async def _call(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError("use the engine as an async context manager")
        try:
            url = self._base_url + path
            async with self._session.request(
                method, url, json=json, params=params, allow_redirects=False
            ) as response:
                text = await response.text()
                if response.status >= 300:
                    raise EngineRefused(f"{method} {path}: {response.status} {text[:500]}")
                return cast("dict[str, Any]", await response.json()) if text.startswith("{") else {}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(
                f"{self._base_url}{path}: {error or type(error).__name__}"
            ) from error
