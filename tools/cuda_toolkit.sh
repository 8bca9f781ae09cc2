#!/usr/bin/env bash
# Prints the folder of a CUDA toolkit: the one on PATH, /usr/local/cuda, or one made of Python packages in
# build/cuda-toolkit, which is installed when there is no other.
set -euo pipefail
cd "$(dirname "$0")/.."

for nvcc in "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
  if [ -x "$nvcc" ]; then
    dirname "$(dirname "$(readlink -f "$nvcc")")"
    exit
  fi
done

readonly VENV=build/cuda-toolkit REQUIREMENTS=kernels/cuda/requirements.txt
if ! cmp -s "$REQUIREMENTS" "$VENV/.requirements"; then
  printf '==> no nvcc on PATH or in /usr/local/cuda: installing one in %s\n' "$VENV" >&2
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install -q --disable-pip-version-check --no-deps -r "$REQUIREMENTS" >&2
  # What the compiler's own profile and CMake look for and the packages leave out.
  for root in "$VENV"/lib/python3*/site-packages/nvidia/cu13; do
    ln -s lib "$root/lib64"
    for library in "$root"/lib/lib*.so.*; do
      name=${library%%.so.*}.so
      [ -e "$name" ] || ln -s "$(basename "$library")" "$name"
    done
  done
  cp "$REQUIREMENTS" "$VENV/.requirements"
fi
readlink -f "$VENV"/lib/python3*/site-packages/nvidia/cu13
