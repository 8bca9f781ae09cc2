#!/usr/bin/env bash
# usage: saved_states_test.sh BIN_FOLDER SOURCE_FOLDER
# Sessions that an earlier server backed up (golden_states/) are restored here and must go on as they did there.
set -euo pipefail
bin=$1 source=$2
export PATH=$bin:$PATH
saved=$source/tests/golden_states

work=$(mktemp -d)
server=
stop() { if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then wait "$server" || true; fi; server=; }
trap 'stop; rm -rf "$work"' EXIT
fail() { echo "FAIL: $*" >&2; exit 1; }

paper=$source/tests/golden_paper
palimpsest-server --model="books=$source/checkpoints/books-5m" --model="sum-dpfp=$paper/sum_dpfp_36" \
  --model="softmax=$paper/softmax" --model="transformer-xl=$paper/transformer_xl" \
  --model="delta-norm-dpfp=$paper/delta_norm_dpfp_46" \
  --slots=2 --port=0 --port_file="$work/port" --metrics_address= --grace=1s >"$work/log" 2>&1 &
server=$!
for _ in $(seq 600); do
  [ -s "$work/port" ] && break
  kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
  sleep 0.05
done
PALIMPSEST_SERVER=127.0.0.1:$(cat "$work/port")
export PALIMPSEST_SERVER

"$source/deploy/sessions.sh" restore "$saved" || fail "not all sessions were restored"
for reply in "$saved"/*.reply; do
  session=$(basename "$reply" .reply)
  palimpsest generate --session "$session" --max_tokens 20 --temperature 0 --tokens 7,3 --logprobs >"$work/$session"
  # The same ids; log-probabilities to the rounding that processors differ by.
  awk -F'\t' -v session="$session" '
    NR == FNR { id[FNR] = $1; logprob[FNR] = $2; lines = FNR; next }
    { d = $2 - logprob[FNR]; if ($1 != id[FNR] || d > 0.0006 || d < -0.0006) bad = FNR }
    END { if (bad || FNR != lines || lines < 10) { print session ": token " bad " of " FNR ", " lines " expected"; exit 1 } }
  ' "$reply" "$work/$session" || fail "$session goes on with other text than the server that saved it"
done
echo ok
