#!/usr/bin/env bash
# usage: demo.sh BIN_FOLDER CHECKPOINT PROMPT
# Starts a server on a free loopback port, streams 200 tokens from it, and stops it whatever happens.
set -euo pipefail
bin=$1 checkpoint=$2 prompt=$3

work=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then wait "$server" || true; fi
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$bin/palimpsest-server" --model="books=$checkpoint" --port=0 --port_file="$work/port" --metrics_address= \
  --grace=2s >"$work/log" 2>&1 &
server=$!

for _ in $(seq 200); do
  [ -s "$work/port" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.05
done
[ -s "$work/port" ] || { echo "the server did not get ready; its log:" >&2; cat "$work/log" >&2; exit 1; }
port=$(cat "$work/port")

echo "Server ready on 127.0.0.1:$port with $checkpoint" >&2
echo >&2
"$bin/palimpsest" --server "127.0.0.1:$port" generate --stats --echo --ignore_end_of_text --max_tokens 200 \
  --temperature 0.7 --top_p 0.95 "$prompt"
echo
