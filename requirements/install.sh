#!/usr/bin/env bash
# Makes the two environments, .venv (everything but vLLM) and .venv-serve (vLLM), with uv from PyPI in .fulgurite/uv.
# With a folder's name it makes that one alone: .venv-lint (linters) or .venv-docs (the documentation's generator), which are small, or
# .venv-serve-gpu (vLLM with CUDA).
# A second run with unchanged requirements installs nothing. Needs Python 3.11 or 3.12; writes only here and into uv's cache.
# Every package must have one of the hashes that the lists name; the slim torch build from PyTorch's own index alone is taken without one.
# TORCH_BACKEND=cpu takes that build, TORCH_BACKEND=pypi takes PyPI's; without it choose-torch.sh chooses, once. The seconds it took go to
# .fulgurite/install-seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV_VERSION=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements/uv.txt)
readonly UV_VERSION
readonly NEEDED_GIB=12
readonly UV=.fulgurite/uv/bin/uv
readonly TORCH_INDEX=https://download.pytorch.org/whl/cpu/torch/
readonly CHOICE=.fulgurite/torch-backend
started=$SECONDS

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'Cannot install: %s\n' "$*" >&2; exit 1; }

check_machine() {
  [[ "$(uname -s)-$(uname -m)" == Linux-x86_64 ]] ||
    fail "this is $(uname -s) on $(uname -m); vLLM's CPU build exists for Linux on x86-64. Use such a machine, or docker compose on one."
  grep -qm1 '\bavx2\b' /proc/cpuinfo || fail "the CPU has no AVX2, which vLLM's CPU build needs. Use a machine from 2015 or later."
  [[ "${TORCH_BACKEND:-}" =~ ^(cpu|pypi)?$ ]] || fail "TORCH_BACKEND=$TORCH_BACKEND is not known; leave it out, or set it to cpu or pypi."
  local free_gib
  free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [[ -d .venv-serve ]] || ((free_gib >= NEEDED_GIB)) ||
    fail "$free_gib GiB of disk are free here, $NEEDED_GIB are needed. Free some, or set TORCH_BACKEND=cpu and UV_CACHE_DIR elsewhere."
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    [[ -n "$candidate" ]] && command -v "$candidate" >/dev/null || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  fail "no Python 3.11 or 3.12 was found. Install one (apt install python3.11 python3.11-venv, pyenv, ...) or name it: make install PYTHON=/path/to/python3.11"
}

install_uv() {
  [[ "$($UV --version 2>/dev/null)" == "uv $UV_VERSION"* ]] && return
  say "uv $UV_VERSION from PyPI"
  rm -rf .fulgurite/uv
  mkdir -p .fulgurite
  # Debian's python3 may come without ensurepip; pip --target then does the same.
  if "$python" -m venv .fulgurite/uv 2>/dev/null; then
    .fulgurite/uv/bin/python -m pip install --quiet --require-hashes --requirement requirements/uv.txt || fail "pip cannot fetch uv: is the package index reachable (pip config list)?"
  else
    rm -rf .fulgurite/uv
    "$python" -m pip install --quiet --target .fulgurite/uv --require-hashes --requirement requirements/uv.txt ||
      fail "neither 'python -m venv' nor 'pip install --target' works with $python. On Debian and Ubuntu: apt install python3-venv"
  fi
}

# Sets `backend`. What was chosen once stays: an index that does not answer for a moment must not change what is installed.
choose_torch() {
  if [[ -n "${TORCH_BACKEND:-}" ]]; then
    backend=$TORCH_BACKEND
  elif [[ -f "$CHOICE" ]]; then
    backend=$(<"$CHOICE")
  else
    backend=$(requirements/choose-torch.sh "$python" "$TORCH_INDEX")
  fi
  printf '%s\n' "$backend" >"$CHOICE"
}

# Usage: environment FOLDER REQUIREMENTS
environment() {
  local folder=$1 requirements=$2 stamp="$1/.requirements-sha256" wanted list check
  wanted=$(cat "$requirements" requirements/build.txt requirements/without-cuda.awk pyproject.toml requirements/install.sh - <<<"$backend $python" | sha256sum)
  [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]] && return
  say "$folder from $requirements"
  [[ -x "$folder/bin/python" ]] || "$UV" venv --quiet --python "$python" "$folder"
  list="$requirements" check=--require-hashes
  if [[ "$backend" == cpu ]]; then
    list=".fulgurite/${folder#.}.txt" check=--torch-backend=cpu
    awk -f requirements/without-cuda.awk "$requirements" >"$list"
  fi
  # The list is complete: nothing is to be resolved.
  if ! "$UV" pip install --python "$folder" --no-deps -r "$list" "$check"; then
    [[ "$backend" == cpu && -z "${TORCH_BACKEND:-}" ]] ||
      fail "uv could not install $requirements; its message is above. Run the command again once the index is reachable: what was fetched is kept."
    say "PyTorch's index did not serve; taking torch from PyPI instead, 2 GB more"
    backend=pypi
    printf '%s\n' "$backend" >"$CHOICE"
    environment "$folder" "$requirements"
    return
  fi
  "$UV" pip install --quiet --python "$folder" --no-deps --build-constraints requirements/build.txt --editable .
  # Compile once. uv leaves it to Python, and where PYTHONDONTWRITEBYTECODE is set every process would compile its imports anew: seconds each.
  # Some packages hold templates that are no Python, hence the `true`.
  "$folder/bin/python" -m compileall -qq -j 0 "$folder/lib" || true
  printf '%s\n' "$wanted" >"$stamp"
}

# Usage: small_environment FOLDER REQUIREMENTS   Tools alone: no torch, and not the project.
small_environment() {
  local folder=$1 requirements=$2 stamp="$1/.requirements-sha256" wanted
  wanted=$(sha256sum <<<"$(<"$requirements") $python")
  [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]] && return
  say "$folder from $requirements"
  "$UV" venv --quiet --clear --python "$python" "$folder"
  "$UV" pip install --quiet --python "$folder" --no-deps --require-hashes -r "$requirements" ||
    fail "uv could not install $requirements; its message is above. Run the command again once the index is reachable."
  printf '%s\n' "$wanted" >"$stamp"
}

if [[ "${1:-}" == .venv-serve-gpu ]]; then
  check_machine
  nvidia-smi --list-gpus >/dev/null 2>&1 || fail "nvidia-smi finds no GPU here. Without one, \`make install\` has installed vLLM's CPU build."
  python=$(find_python)
  install_uv
  backend=pypi
  environment .venv-serve-gpu requirements/serve-gpu.txt
  exit
fi
if (($#)); then
  python=$(find_python)
  install_uv
  small_environment "$1" "requirements/${1#.venv-}.txt"
  exit
fi
check_machine
python=$(find_python)
install_uv
choose_torch
if [[ ! -d .venv-serve ]]; then
  if [[ "$backend" == cpu ]]; then size=1.4 build="without CUDA, from PyTorch's index"; else size=3.4 build="with CUDA, from PyPI"; fi
  say "the first installation downloads $size GB, most of it vLLM and torch ($build); what uv has in its cache is not fetched again"
fi
environment .venv requirements/services.txt
environment .venv-serve requirements/serve.txt
echo $((SECONDS - started)) >.fulgurite/install-seconds
