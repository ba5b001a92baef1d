"""What the parts of a local stack are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.runtime.process_secrets import KEYS
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.vllm_local import LocalVllm


def test_only_the_gateway_gets_keys(tmp_path: Path) -> None:
    stack = LocalStack(StackOptions(data=tmp_path))
    stack.environment = stack._environment(  # pyright: ignore[reportPrivateUsage]
        bootstrap_servers="b:1",
        redis_url="redis://r",
        vllm_url="http://v",
        model=tmp_path,
    )
    specs = {spec.name: spec for spec in stack._services()}  # pyright: ignore[reportPrivateUsage]
    holders = {name for name, spec in specs.items() if KEYS & (spec.env or {}).keys()}
    assert holders == {"gateway"}
    assert (specs["gateway"].env or {}).keys() >= KEYS


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, "none.invalid"), ("", "none.invalid"), ("images.example", "images.example")],
)
def test_vllm_fetches_from_no_domain_but_the_one_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setenv("FULGURITE_SERVE_ENV", str(tmp_path))
    monkeypatch.delenv("VLLM_MEDIA_DOMAIN", raising=False)
    if given is not None:
        monkeypatch.setenv("VLLM_MEDIA_DOMAIN", given)
    vllm = LocalVllm(tmp_path, tmp_path, port=1)
    argv = list(vllm.process.spec.argv)
    assert argv[argv.index("--allowed-media-domains") + 1] == expected
    vllm.stop()
