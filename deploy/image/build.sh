#!/usr/bin/env bash
# usage: build.sh PRESET
# Runs in the build stages of the Dockerfile: builds and tests, and lays out under /out what the image gets, as it will
# lie under /. Reads COMMIT and JOBS.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CCACHE_NOHASHDIR=1

readonly preset=$1
cmake --preset "$preset" -DPALIMPSEST_BUILD_BENCH=OFF -DPALIMPSEST_COMMIT="${COMMIT:-unknown}"
# The numbers against the references', the life of a server process, and each command of the command line.
readonly tests=(golden_test lifecycle_test client_cli_e2e_test)
cmake --build --preset "$preset" -j "${JOBS:-$(nproc)}" --target palimpsest-server palimpsest "${tests[@]}"
ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -R "^($(IFS='|' && echo "${tests[*]}"))\$"

readonly bin=/out/usr/local/bin share=/out/usr/local/share/palimpsest lib=/out/usr/local/lib/palimpsest
mkdir -p "$bin" "$share" "$lib" /out/models
for program in palimpsest-server palimpsest; do
  strip --strip-debug -o "$bin/$program" "build/$preset/bin/$program"  # keeps the names of functions
done
cp -r checkpoints/books-5m LICENSE "$share/"
cp deploy/image/install.sh "$lib/"

# The packages of the shared libraries that the programs link, as this distribution names them. CUDA's own libraries
# belong to no such package: the base of the cuda image has them.
apt-get update -qq
apt-get install -y -qq --no-install-recommends dpkg-dev >/dev/null
scratch=$(mktemp -d)
mkdir "$scratch/debian"
touch "$scratch/debian/control"
(cd "$scratch" && dpkg-shlibdeps -O --ignore-missing-info "$bin"/*) |
  sed 's/^shlibs:Depends=//; s/ *([^)]*)//g; s/, */\n/g' >"$lib/packages"
cat "$lib/packages"
