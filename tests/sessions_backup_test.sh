#!/usr/bin/env bash
# usage: sessions_backup_test.sh BIN_FOLDER CHECKPOINT DEPLOY_FOLDER
# Backs the sessions of one server up, restores them on another, and expects both to go on with the same text.
set -euo pipefail
bin=$1 checkpoint=$2 deploy=$3
export PATH=$bin:$PATH

work=$(mktemp -d)
server=
stop() { if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then wait "$server" || true; fi; server=; }
trap 'stop; rm -rf "$work"' EXIT
fail() { echo "FAIL: $*" >&2; exit 1; }

start() {
  rm -f "$work/port"
  palimpsest-server --model="books=$checkpoint" --slots=2 --port=0 --port_file="$work/port" --metrics_address= \
    --grace=1s >"$work/log" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    [ -s "$work/port" ] && break
    kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
    sleep 0.05
  done
  PALIMPSEST_SERVER=127.0.0.1:$(cat "$work/port")
  export PALIMPSEST_SERVER
}
go_on() { palimpsest generate --session "$1" --temperature 0 --max_tokens 20 " and then"; }

start
palimpsest session create first --ttl 2h >/dev/null
palimpsest session create second --ttl 0 >/dev/null
palimpsest session create untouched >/dev/null
palimpsest generate --session first --max_tokens 30 --seed 1 "The captain looked at the sea and" >/dev/null
palimpsest generate --session second --max_tokens 70 --seed 2 "She opened the letter and" >/dev/null
"$deploy/sessions.sh" backup "$work/backup"
[ -z "$(palimpsest snapshot list --json)" ] || fail "the backup left snapshots behind"
for session in first second; do go_on "$session" >"$work/$session.before"; done
stop

start
"$deploy/sessions.sh" restore "$work/backup"
[ "$(palimpsest session list --json | wc -l)" = 3 ] || fail "not three sessions: $(palimpsest session list)"
[ -z "$(palimpsest snapshot list --json)" ] || fail "the restoration left snapshots behind"
palimpsest session list --json | grep '"sessions/first"' | grep -q '"ttl":"7200s"' || fail "first's time to live changed"
palimpsest session list --json | grep '"sessions/second"' | grep -q '"ttl":"0s"' || fail "second does not live for ever any more"
for session in first second; do
  go_on "$session" >"$work/$session.after"
  [ -s "$work/$session.after" ] || fail "$session says nothing"
  cmp "$work/$session.before" "$work/$session.after" || fail "$session goes on with other text"
done

# Names that are taken are told, and nothing is overwritten.
if "$deploy/sessions.sh" restore "$work/backup" 2>"$work/errors"; then fail "a second restoration passed"; fi
grep -q "first was not made" "$work/errors" || fail "it did not say which: $(cat "$work/errors")"
echo ok
