#!/bin/sh
# Installs pinned packages into an image, never the project itself, so that a change of code leaves these layers alone.
#   install.sh extras NAME...   what extras of pyproject.toml need, as requirements/services.txt pins it
#   install.sh torch            torch alone, a layer that learner and vLLM share
#   install.sh serve            vLLM's CPU build, as requirements/serve.txt pins it
# Every package must have one of the hashes that the lists name. TORCH_BACKEND=cpu takes torch from PyTorch's own index, without CUDA, 5 GiB
# smaller, and without a hash; empty takes PyPI's.
set -eu
what=$1
shift

export UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_PYTHON=/usr/local/bin/python UV_HTTP_TIMEOUT=300
command -v uv >/dev/null || pip install --quiet --require-hashes --requirement requirements/uv.txt

pins() {
  if [ "${TORCH_BACKEND:-}" = cpu ]; then awk -f requirements/without-cuda.awk "$1"; else cat "$1"; fi >/tmp/pins.txt
}
[ -z "${TORCH_BACKEND:-}" ] || export UV_TORCH_BACKEND="$TORCH_BACKEND"

case $what in
  extras)
    pins requirements/services.txt
    for extra; do set -- "$@" --extra "$extra"; shift; done
    uv pip install --requirements pyproject.toml "$@" --constraints /tmp/pins.txt
    ;;
  torch)
    pins requirements/services.txt
    uv pip install torch --constraints /tmp/pins.txt
    ;;
  serve)
    pins requirements/serve.txt
    uv pip install --no-deps --requirements /tmp/pins.txt
    ;;
esac
rm -f /tmp/pins.txt
[ "${KEEP_UV:-}" ] || pip uninstall --quiet --yes --root-user-action=ignore uv
