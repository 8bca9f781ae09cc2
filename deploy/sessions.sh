#!/usr/bin/env bash
# usage: sessions.sh backup FOLDER     every session's state into FOLDER, one file each, and what they are called
#        sessions.sh restore FOLDER    makes the sessions of a backup again, under the same names
# Needs the `palimpsest` command line in PATH; PALIMPSEST_SERVER says which server (default localhost:50051). The states
# fit servers with the same checkpoint. Exit code 1: some sessions could not be taken, and which.
set -euo pipefail

usage() { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
[ $# = 2 ] || usage
command -v palimpsest >/dev/null || { echo "sessions.sh: the palimpsest command line is not in PATH" >&2; exit 2; }
folder=$2
failed=0
complain() { echo "sessions.sh: $*" >&2; failed=1; }

# The value of KEY in one line of JSON; nothing if it is not there. Names and times hold no quotes.
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" <<<"$2"; }

backup() {
  mkdir -p "$folder"
  chmod 700 "$folder"  # states are the users' text in another form
  local line id snapshot
  palimpsest session list --json >"$folder/sessions.jsonl.part"
  while IFS= read -r line; do
    id=$(field name "$line")
    id=${id#sessions/}
    [ -n "$id" ] || continue
    # The snapshot goes away by itself, should we be interrupted.
    if ! snapshot=$(palimpsest snapshot create "$id" --ttl 10m --json | tr -d '\n'); then
      complain "$id was not taken: it is in use, quarantined or gone"
      continue
    fi
    snapshot=$(field name "$snapshot")
    palimpsest snapshot download "${snapshot#snapshots/}" "$folder/$id.state" >/dev/null || complain "$id: no download"
    palimpsest snapshot delete "${snapshot#snapshots/}" >/dev/null || true
  done <"$folder/sessions.jsonl.part"
  mv "$folder/sessions.jsonl.part" "$folder/sessions.jsonl"
}

restore() {
  local line id model ttl snapshot
  [ -f "$folder/sessions.jsonl" ] || { echo "sessions.sh: $folder holds no backup" >&2; exit 2; }
  while IFS= read -r line; do
    id=$(field name "$line")
    id=${id#sessions/}
    model=$(field model "$line")
    ttl=$(field ttl "$line")
    [ -f "$folder/$id.state" ] || continue  # could not be taken
    if ! snapshot=$(palimpsest snapshot upload "$folder/$id.state" --model "$model" --ttl 10m --json | tr -d '\n'); then
      complain "$id was not restored"
      continue
    fi
    snapshot=$(field name "$snapshot")
    snapshot=${snapshot#snapshots/}
    palimpsest session create "$id" --from_snapshot "$snapshot" --ttl "${ttl:-0}" >/dev/null || complain "$id was not made"
    palimpsest snapshot delete "$snapshot" >/dev/null || true
  done <"$folder/sessions.jsonl"
}

case $1 in
  backup) backup ;;
  restore) restore ;;
  *) usage ;;
esac
exit $failed
