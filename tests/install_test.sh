#!/usr/bin/env bash
# usage: install_test.sh BUILD CMAKE COMPILER VERSION CHECKPOINT PROTOC
# Installs what is built, builds tests/install against that and nothing else, and runs it with the installed server.
set -euo pipefail
build=$1 cmake=$2 compiler=$3 version=$4 checkpoint=$5 protoc=$6
consumer=$(dirname "$(readlink -f "$0")")/install

work=$(mktemp -d)
server=
stop() { if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then wait "$server" || true; fi; server=; }
trap 'stop; rm -rf "$work"' EXIT
fail() { echo "FAIL: $*" >&2; exit 1; }

"$cmake" --install "$build" --prefix "$work/first" >/dev/null
# A package may be moved after it was installed.
mv "$work/first" "$work/prefix"
if grep -rlF -e "$build" -e "$work" --include='*.cmake' --include='*.h' "$work/prefix"; then
  fail "these name where they were made"
fi
"$protoc" -I "$work/prefix/share/palimpsest/proto" -o "$work/descriptors" \
  "$work"/prefix/share/palimpsest/proto/palimpsest/v1/*.proto

"$cmake" -G Ninja -S "$consumer" -B "$work/consumer" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_BUILD_TYPE=Debug \
  -DCMAKE_CXX_COMPILER="$compiler" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "the package is not found"; }
"$cmake" --build "$work/consumer" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "it does not build"; }

[ "$("$work/prefix/bin/palimpsest" --version)" = "palimpsest $version" ] || fail "the command line has another version"

if "$work/consumer/consumer" "unix:$work/nobody" 2>"$work/errors"; then fail "nobody was reached"; fi
grep -q "UNAVAILABLE.*$work/nobody" "$work/errors" || fail "it did not say why: $(cat "$work/errors")"

"$work/prefix/bin/palimpsest-server" --model="books=$checkpoint" --slots=1 --port=0 --port_file="$work/port" \
  --metrics_address= --grace=1s >"$work/log" 2>&1 &
server=$!
for _ in $(seq 600); do
  [ -s "$work/port" ] && break
  kill -0 "$server" || { cat "$work/log" >&2; fail "the server does not start"; }
  sleep 0.05
done
"$work/consumer/consumer" "127.0.0.1:$(cat "$work/port")" | tee "$work/reply"
grep -q "^8 tokens$" "$work/reply" || fail "not the reply that was asked for"
echo ok
