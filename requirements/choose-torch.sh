#!/usr/bin/env bash
# Usage: choose-torch.sh PYTHON INDEX   Prints the build of torch to install: "cpu", the slim one from PyTorch's own index, or "pypi", PyPI's with
# CUDA. Without an NVIDIA GPU the slim one is enough and takes 2 GB less to download; where that index does not answer, PyPI's serves as well.
set -euo pipefail
python=$1 index=$2

answers() {
  "$python" - "$index" <<'PROBE' 2>/dev/null
import sys
import urllib.request

urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=5).close()
PROBE
}

if [[ -n "$(command -v nvidia-smi)" ]] && nvidia-smi --list-gpus >/dev/null 2>&1; then
  echo pypi
elif answers; then
  echo cpu
else
  echo pypi
fi
