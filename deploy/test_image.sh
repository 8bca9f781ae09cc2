#!/usr/bin/env bash
# usage: deploy/test_image.sh
# Builds the cpu image for real, without a container engine, runs it as an orchestrator would, and checks what it is
# and does. Needs root on Debian 12, and installs what it uses. JOBS: how many compilers (default: one per processor).
#
# buildah builds in a chroot, on a base that debootstrap makes and that is tagged as the Dockerfile's. Everything lies
# under build/image: the compiler's cache stays there for the next run, the rest is removed at the end.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$(readlink -f "$0")")/.."

readonly MAX_ADDED_MB=150
readonly WORK=$PWD/build/image
readonly STORE=$WORK/store  # buildah's images and containers

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
ok() { printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail 'this needs root: run it as root, or through sudo'
command -v apt-get >/dev/null || fail 'this is not Debian: build with docker build --target cpu instead'

# -- Nothing outlives this script: what it starts lives in a process namespace that dies with its first process.
child=
stop_child() {
  [ -z "$child" ] || { kill -KILL "$child" 2>/dev/null && wait "$child" 2>/dev/null; } || true
  child=
}
finish() {
  stop_child
  rm -rf "$STORE"
}
# Waits for the command, so that a signal ends both.
contained() {
  unshare --mount --pid --mount-proc --fork --kill-child -- "$@" &
  child=$!
  local status=0
  wait "$child" || status=$?
  child=
  return "$status"
}
# Beside its store, buildah keeps the compiler's cache under TMPDIR.
readonly BUILDAH=(env "TMPDIR=$WORK/tmp" buildah --root "$STORE/images" --runroot "$STORE/run" --storage-driver vfs)
images() { "${BUILDAH[@]}" "$@"; }

install_tools() {
  local missing=()
  for tool in buildah debootstrap ip:iproute2 pgrep:procps python3; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A minimal Debian, from where this machine gets its packages, under the name that the Dockerfile knows.
make_base() {
  say 'making the base with debootstrap'
  local mirror container
  # shellcheck disable=SC2016  # apt's own variable
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
  contained debootstrap --variant=minbase bookworm "$base" "${mirror:-http://deb.debian.org/debian}" >"$STORE/log" ||
    { cat "$STORE/log" >&2; fail 'debootstrap failed'; }
  rm -rf "$base"/var/cache/apt/* "$base"/var/lib/apt/lists/*
  container=$(images from scratch)
  images add -q "$container" "$base" / >/dev/null
  images commit -q --rm "$container" docker.io/library/debian:bookworm-slim >/dev/null
}

# pip inside the build takes this machine's configuration and certificates.
build_image() {  # TARGET
  local secrets=()
  if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
    { sed '/^ *cert *=/d' /etc/pip.conf 2>/dev/null || true; printf '[install]\ncert = /run/secrets/authorities\n'; } \
      >"$STORE/pip.conf"
    secrets=("--secret=id=pip,src=$STORE/pip.conf" "--secret=id=authorities,src=/etc/ssl/certs/ca-certificates.crt")
  fi
  # Only docker's format has health checks.
  contained "${BUILDAH[@]}" build --isolation chroot --format docker --pull-never --target "$1" \
    --build-arg "COMMIT=$commit" --build-arg "VERSION=$version" --build-arg "JOBS=${JOBS:-}" \
    ${secrets[@]+"${secrets[@]}"} -t "localhost/palimpsest:$1" .
}

# Instructions of a stage, from the one after its FROM.
stage() { awk -v name="$1" '/^FROM /{on=($NF==name); next} on && NF && !/^#/' Dockerfile; }

# Its bases are not to be had here, so what differs from the cpu image is checked by reading, and the rest by being the
# same text.
check_cuda_stages() {
  diff <(stage build-cpu | sed 's/build.sh release/build.sh cuda/') <(stage build-cuda) ||
    fail 'build-cuda is to be build-cpu with the preset cuda, and nothing else'
  diff <(stage cpu | sed 's/--from=build-cpu/--from=build-cuda/') <(stage cuda) ||
    fail 'cuda is to be cpu with the other build, and nothing else'
  local cuda
  cuda=$(sed -n 's/^FROM nvidia\/cuda:\([0-9.]*\)-devel-ubuntu24.04 AS build-cuda$/\1/p' Dockerfile)
  grep -qx "FROM nvidia/cuda:${cuda:?no version}-runtime-ubuntu24.04 AS cuda" Dockerfile ||
    fail 'the two bases of cuda are not one version of CUDA on Ubuntu 24.04'
  # The builder reads the target's stages, and stops where it needs the first base.
  ! build_image cuda >"$STORE/log" 2>&1 || fail 'cuda was built on no base'
  grep -q 'nvidia/cuda:.*-devel-ubuntu24.04.*image not known' "$STORE/log" ||
    { cat "$STORE/log" >&2; fail 'cuda fails for another reason than its missing base'; }
  ok "cuda: the same instructions as cpu, on CUDA $cuda"
}

# -- The image, read.
config() {  # EXPRESSION of Python on `c`, the image's configuration; a list is printed one element a line
  images inspect --type image localhost/palimpsest:cpu | python3 -c '
import json, sys
c = json.load(sys.stdin)["Docker"]["config"]
value = eval(sys.argv[1])
print("\n".join(value) if isinstance(value, list) else value)' "$1"
}

check_configuration() {
  [ "$(config 'c["User"]')" = 65532:65532 ] || fail "the user is $(config 'c["User"]')"
  local label
  for label in title description licenses version revision; do
    [ -n "$(config "c['Labels'].get('org.opencontainers.image.$label', '')")" ] || fail "there is no label $label"
  done
  [ "$(config 'c["Labels"]["org.opencontainers.image.version"]')" = "$version" ] || fail 'the label has another version'
  [ "$(config 'sorted(c["ExposedPorts"])' | tr '\n' ' ')" = '50051/tcp 9464/tcp ' ] || fail 'the ports'
  ok "user $(config 'c["User"]'), labels, ports; health check: $(config 'c["Healthcheck"]["Test"][1:]' | tr '\n' ' ')"
}

# Files that are neither a package's nor the base's must be ours.
check_contents() {
  local ours strangers packages program
  ours="^/usr/local/bin/palimpsest(-server)?\$|^/usr/local/share/palimpsest/|^/etc/ld.so.cache\$"
  # The packages' records, and the builder's mount point.
  ours+="|^/var/lib/dpkg/|^/var/lib/apt/extended_states\$|^/etc/hosts\$"
  strangers=$(comm -23 <(cd "$root" && find . \( -type f -o -type l \) -printf '/%P\n' | sort) \
    <({
      cd "$base" && find . -printf '/%P\n'
      sed 's,^/\(bin\|lib\|sbin\),/usr/\1,' "$root"/var/lib/dpkg/info/*.list  # those are links into /usr
    } | sort -u) | grep -vE "$ours" || true)
  [ -z "$strangers" ] || fail "the image holds files that are neither a package's nor ours:"$'\n'"$strangers"
  packages=$(comm -13 <(dpkg_packages "$base") <(dpkg_packages "$root"))
  ! grep -E -- '-dev$|^(cmake|ninja|ccache|git|python|dpkg-dev|make$|gcc-[0-9]+$|g\+\+|cpp|binutils|protobuf-)' \
    <<<"$packages" || fail 'the image holds a package of the build stage'
  for program in palimpsest-server palimpsest; do
    ! chroot "$root" ldd "/usr/local/bin/$program" | grep 'not found' || fail "$program lacks a library"
  done
  ok "nothing of the build stage is left; $(wc -l <<<"$packages") packages were added"

  local added_mb=$((($(bytes "$root") - $(bytes "$base")) / 1000000))
  [ "$added_mb" -le "$MAX_ADDED_MB" ] || fail "the image is $added_mb MB over its base, more than $MAX_ADDED_MB"
  ok "size: $(($(bytes "$root") / 1000000)) MB, of which $added_mb MB over the base"
}
# shellcheck disable=SC2016  # dpkg's own variable
dpkg_packages() { chroot "$1" dpkg-query -W -f '${Package}\n' | sort; }
bytes() { du --summarize --apparent-size --block-size=1 "$1" | cut -f 1; }

# -- The image, running: its root read-only, its user, its environment, a network and a first process of its own.
# shellcheck disable=SC2016  # runs in the namespaces, with arguments of its own
readonly ENTER='
  root=$1 models=$2
  shift 2
  ip link set lo up
  mount --bind "$root" "$root"
  mount -o remount,bind,ro "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --bind -o ro "$models" "$root/models"
  exec "$@"'
new_container() {  # COMMAND...
  exec unshare --mount --pid --net --ipc --fork --kill-child -- \
    bash -euc "$ENTER" enter "$root" "$PWD/checkpoints" "${as_user[@]}" "$@"
}
in_container() { nsenter --target "$server" --mount --pid --net --ipc -- "${as_user[@]}" "$@"; }
milliseconds() { date +%s%3N; }

start_server() {
  local begin ready=
  begin=$(milliseconds)
  new_container "${entrypoint[@]}" 2>"$STORE/server.log" &
  child=$!
  for _ in $(seq 200); do
    kill -0 "$child" 2>/dev/null || break
    server=$(pgrep --parent "$child" || true)
    if [ -n "$server" ] && in_container "${health[@]}" >/dev/null 2>&1; then ready=$(milliseconds) && break; fi
    sleep 0.02
  done
  [ -n "$ready" ] || { cat "$STORE/server.log" >&2; fail 'the server did not get ready'; }
  ok "ready $((ready - begin)) ms after the start of the container"
}

check_process() {
  local status=/proc/$server/status
  [ "$(awk '/^Uid:/{print $2, $3, $4, $5}' "$status")" = '65532 65532 65532 65532' ] || fail 'it has another user'
  [ "$(awk '/^CapEff:/{print $2}' "$status")" = 0000000000000000 ] || fail 'the server has capabilities'
  [ "$(awk '/^NSpid:/{print $NF}' "$status")" = 1 ] || fail 'the server is not the first process'
  ! in_container touch /models/x /tmp/x /usr/local/bin/x 2>/dev/null || fail 'the root can be written'
  ok 'runs as 65532 without capabilities, as the first process, its root read-only'
}

check_serving() {
  local text stats first
  text=$(in_container palimpsest generate --max_tokens 50 --temperature 0 --stats 'The captain looked at the sea and' \
    2>"$STORE/stats")
  stats=$(cat "$STORE/stats")
  [ "${#text}" -gt 50 ] || fail "the stream is \"$text\""
  first=$(sed -n 's/.*first token \([0-9.]* [mu]*s\).*/\1/p' <<<"$stats")
  [ -n "$first" ] || fail "no time to first token in: $stats"
  ok "time to first token inside the container: $first at the first request"
  in_container palimpsest bench --requests 50 --concurrency 1 --output_tokens 16 --json - >"$STORE/bench.json"
  python3 - "$STORE/bench.json" <<'PYTHON' || fail 'the load was not served'
import json, sys
report = json.load(open(sys.argv[1]))
first = report["time_to_first_token_seconds"]
p50, p99 = first["p50"] * 1e3, first["p99"] * 1e3
print(f"ok    then {p50:.2f} ms in the median, {p99:.2f} ms at p99, of {report['completed']} requests")
sys.exit(report["completed"] != report["requests"])
PYTHON
  in_container palimpsest models load mounted books-5m >/dev/null || fail 'LoadModel does not find what is at /models'
  in_container palimpsest generate --model mounted --max_tokens 5 'And' >/dev/null ||
    fail 'a model of /models does not answer'
  ok 'a checkpoint mounted under /models is loaded and answers'
  in_container bash -c 'exec 3<>/dev/tcp/127.0.0.1/9464; printf "GET /metrics HTTP/1.0\r\n\r\n" >&3; cat <&3' |
    grep -q '^palimpsest_generated_tokens_total' || fail 'no metrics'
  ok 'metrics'
}

check_stop() {
  local status=0
  kill -TERM "$server"
  wait "$child" || status=$?
  child=
  [ "$status" = 0 ] || { cat "$STORE/server.log" >&2; fail "SIGTERM ended the server with $status"; }
  ok 'exit code 0 on SIGTERM'
}

# -- All of it.
install_tools
mkdir -p "$WORK/tmp"
exec 9>"$WORK/lock"
flock --nonblock 9 || fail 'another run is under way'
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
rm -rf "$STORE"  # of a run that was killed
mkdir -p "$STORE"

version=$(sed -n 's/^project(palimpsest VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
base=$STORE/base
make_base
check_cuda_stages
say 'building the cpu image'
build_image cpu

container=$(images from --pull-never localhost/palimpsest:cpu)
root=$(images mount "$container")
check_configuration
check_contents

# As an engine does.
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
mapfile -t environment < <(config 'c["Env"]')
mapfile -t entrypoint < <(config 'c["Entrypoint"]')
mapfile -t health < <(config 'c["Healthcheck"]["Test"][1:]')
as_user=(env -i "${environment[@]}" setpriv --no-new-privs chroot "--userspec=$(config 'c["User"]')" "$root")
! (new_container "${health[@]}") 2>/dev/null || fail 'the health check succeeds where no server is'
start_server
check_process
check_serving
check_stop
say 'the image is good'
