"""The built wheel alone, in a clean environment with nothing but its base dependencies, decodes an
event and has the client.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.avro.schemas import schema_folder
from fulgurite.events import AgentReward
from services.learner.config_file import presets as presets_by_name

ROOT = Path(__file__).parents[2]
READ_AN_EVENT = """
import sys
from fulgurite.avro.codec import Codec
from fulgurite.avro.schemas import schema_folder
import fulgurite
assert "site-packages" in fulgurite.__file__, fulgurite.__file__
assert "site-packages" in str(schema_folder()), schema_folder()
import services.client
print(Codec().decode(bytes.fromhex(sys.argv[1])).name)
"""


@pytest.fixture(scope="session")
def uv() -> str:
    found = ROOT / ".fulgurite" / "uv" / "bin" / "uv"
    uv = str(found) if found.is_file() else shutil.which("uv")
    assert uv is not None, "uv is not installed: `make install`"
    return uv


@pytest.fixture(scope="session")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--out-dir", str(out), str(ROOT)], check=True
    )
    return next(out.glob("fulgurite-*.whl"))


def test_the_wheel_carries_both_roots_and_every_schema(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in schema_folder().rglob("*.avsc"):
        assert f"fulgurite/schemas/avro/{path.relative_to(schema_folder())}" in names
    presets = {f"services/learner/presets/{name}.toml" for name in presets_by_name()}
    assert (
        presets
        | {
            "fulgurite/events/__init__.py",
            "services/__init__.py",
            "services/gateway/http/openapi.json",
            "services/vllm_plugin/chat_template.jinja",
        }
        <= names
    )
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_the_wheel_works_in_a_clean_environment(uv: str, wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "clean"
    subprocess.run(
        [uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True
    )
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", str(environment), str(wheel)], check=True
    )
    event = AgentReward(
        event_id="e",
        event_time=1,
        group_id="g",
        rollout_id="r",
        name="arrived",
        final=True,
        source="rest",
    )
    argv = [
        str(environment / "bin" / "python"),
        "-I",
        "-c",
        READ_AN_EVENT,
        Codec().encode(event).hex(),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "arrived"), done.stderr
