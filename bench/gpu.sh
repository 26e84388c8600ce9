#!/usr/bin/env bash
# `eft bench` at the shapes 7B/0.5B and 70B/7B on a CUDA GPU: bash bench/gpu.sh FOLDER, where the JSON of both goes.
set -euo pipefail

fail() {
    echo "bench/gpu.sh: $1" >&2
    exit 1
}

needs_nvcc() {
    command -v nvcc >/dev/null || fail "nvcc was not found: install the CUDA toolkit, or a prebuilt wheel as README.md says"
}

offloads() {
    .venv/bin/python -c 'import sys, llama_cpp; sys.exit(not llama_cpp.llama_supports_gpu_offload())'
}

[[ $# == 1 ]] || fail "name one folder for the results"
mkdir -p "$1"
folder=$(realpath "$1")
cd "$(dirname "$0")/.."

export CMAKE_ARGS="${CMAKE_ARGS:--DGGML_CUDA=on}"
if [[ ! -e .venv/installed ]]; then
    needs_nvcc
    make .venv/installed
fi
if ! offloads; then # an environment that was made for the CPU
    needs_nvcc
    pinned=$(.venv/bin/python -m pip freeze | grep -i '^llama.cpp.python==')
    .venv/bin/python -m pip install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python "$pinned"
    offloads || fail "llama-cpp-python was built without a GPU: see CMAKE_ARGS=$CMAKE_ARGS and the output above"
fi

for shape in 7b 70b; do
    .venv/bin/eft bench --shape "$shape" --json >"$folder/$shape.json"
    echo "$folder/$shape.json"
    # Of long answers: they stand at the top of the object, those of short ones further in.
    grep -E '^  "(plain|speculative|auto|batch8)_over_[a-z0-9_]+": [0-9]' "$folder/$shape.json"
done
