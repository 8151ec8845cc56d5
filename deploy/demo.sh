#!/usr/bin/env bash
# A mesh on one machine, nothing prepared: three relays in a line (r1-r2-r3), a terminal at each end, and a real
# TCP service that crosses all three. Needs Rust, bash and coreutils.
#
#   deploy/demo.sh           starts it, prints what it did, stays until Ctrl-C
#   deploy/demo.sh --check   verifies a transfer by hash and every relay's table, cleans up;
#                            exit 0, or 1 with the reason
#
# Honours CARGO_TARGET_DIR. All traffic stays on loopback, all files in one temporary folder.
set -euo pipefail

case "${1-}" in
'') check=no ;;
--check) check=yes ;;
*)
  echo "usage: $0 [--check]" >&2
  exit 2
  ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=
pids=()
reason=
line='?'

# Stops every child and removes the folder, however the script ends.
clean_up() {
  local code=$?
  trap - EXIT
  trap '' INT TERM HUP
  if [ -n "$work" ]; then
    if [ "$code" -eq 1 ]; then show_logs >&2; fi
    if [ ${#pids[@]} -gt 0 ]; then
      kill "${pids[@]}" 2>/dev/null || true
      for _ in {1..50}; do
        kill -0 "${pids[@]}" 2>/dev/null || break
        sleep 0.1
      done
      kill -KILL "${pids[@]}" 2>/dev/null || true
      wait "${pids[@]}" 2>/dev/null || true
    fi
    rm -rf -- "$work"
  fi
  if [ "$code" -eq 1 ]; then echo "demo: ${reason:-line $line failed}" >&2; fi
  exit "$code"
}
trap clean_up EXIT
trap 'line=$LINENO' ERR
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

show_logs() {
  local log
  for log in "$work"/*.log; do
    [ -s "$log" ] || continue
    echo "---- the end of ${log##*/} ----"
    tail -n 15 "$log"
  done
}

say() { printf '%s\n' "$*"; }

# Ends the script; the reason is the last that it says.
fail() {
  reason=$*
  exit 1
}

# Tries a command every 0.1 s until it succeeds, at most $1 seconds; $2 says what it waits for.
await() {
  local limit=$1 what=$2
  shift 2
  local end=$((SECONDS + limit))
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "$what: not within $limit s"
    local pid
    for pid in "${pids[@]}"; do
      kill -0 "$pid" 2>/dev/null || fail "$what: a process of the mesh ended"
    done
    sleep 0.1
  done
}

# Sets the variable $1 to a port that nothing uses at this moment, below the ephemeral ones.
taken=$(cat /proc/net/{tcp,tcp6,udp,udp6} 2>/dev/null || true)
listen1='' status1='' listen2='' status2='' listen3='' status3='' forward=''
free_port() {
  local port hex
  while :; do
    port=$((20000 + RANDOM % 12000))
    printf -v hex ':%04X ' "$port"
    case "$taken" in *"$hex"*) continue ;; esac
    taken="$taken$hex"
    printf -v "$1" %s "$port"
    return
  done
}

# GET $2 from 127.0.0.1:$1, by bash alone; the body on stdout. HTTP/1.0 leaves nothing chunked.
http_get() {
  local port=$1 path=$2 line status=
  # A port that nobody listens on yet is not worth a message.
  { exec 9<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || return 1
  printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n\r\n' "$path" "$port" >&9
  while IFS= read -r -t 10 line <&9; do
    line=${line%$'\r'}
    [ -n "$status" ] || status=$line
    [ -n "$line" ] || break
  done
  timeout 10 cat <&9 || true
  exec 9>&-
  case "$status" in *' 200 '*) return 0 ;; *) return 1 ;; esac
}

healthy() { http_get "$1" /healthz >/dev/null; }

# Whether the table of the relay with status port $1 shows both terminals attached.
table_is_right() {
  local name row
  for name in a b; do
    row=$(http_get "$1" "/api/v1/terminals/$name") || return 1
    case "$row" in
    *'"state":"logged-in"'* | *'"state":"in-communication"'*) ;;
    *) return 1 ;;
    esac
  done
}

table_hash() {
  local body
  body=$(http_get "$1" /api/v1/status) || return 1
  [[ $body =~ \"hash\":\"([0-9a-f]+)\" ]] && printf '%s' "${BASH_REMATCH[1]}"
}

tables_are_equal() {
  local first other
  first=$(table_hash "$status1") && [ -n "$first" ] || return 1
  for other in "$status2" "$status3"; do
    [ "$(table_hash "$other")" = "$first" ] || return 1
  done
}

# The answer of the service, across the mesh and asked directly, has the same hash.
service_crosses() {
  across=$(http_get "$forward" /api/v1/relays | sha256sum) || return 1
  direct=$(http_get "$status3" /api/v1/relays | sha256sum) || return 1
  [ "$across" = "$direct" ]
}

start() {
  local name=$1
  shift
  "$@" >>"$work/$name.log" 2>&1 &
  pids+=($!)
}

# ---- build ----

if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
  PATH="$HOME/.cargo/bin:$PATH"
fi
command -v cargo >/dev/null || fail "cargo is missing: install Rust (https://rustup.rs)"
say "Building the relay and the agent ..."
(cd "$root" && cargo build --release --quiet -p tasuki-relay -p tasuki-terminal --bins) ||
  fail "the build failed"
target=${CARGO_TARGET_DIR:-$root/target}
case "$target" in /*) ;; *) target=$root/$target ;; esac
relay=$target/release/tasuki-relay
agent=$target/release/tasuki-agent

# ---- three relays in a line ----

work=$(mktemp -d "${TMPDIR:-/tmp}/tasuki-demo.XXXXXX")
free_port listen1
free_port status1
free_port listen2
free_port status2
free_port listen3
free_port status3
free_port forward

"$relay" --data "$work/r1" init --name r1 --mesh demo --listen "127.0.0.1:$listen1" \
  --advertise "127.0.0.1:$listen1" --status "127.0.0.1:$status1" >>"$work/r1.log" 2>&1 ||
  fail "init of r1 failed"
start r1 "$relay" --data "$work/r1" run --links r2
await 20 "r1 is healthy" healthy "$status1"

join() {
  local name=$1 listen=$2 status=$3 links=$4 token
  token=$("$relay" --data "$work/r1" token relay) || fail "no token for $name"
  "$relay" --data "$work/$name" join "$token" --name "$name" --listen "127.0.0.1:$listen" \
    --advertise "127.0.0.1:$listen" --status "127.0.0.1:$status" >>"$work/$name.log" 2>&1 ||
    fail "$name could not join"
  start "$name" "$relay" --data "$work/$name" run --links "$links"
  await 20 "$name is healthy" healthy "$status"
}
join r2 "$listen2" "$status2" r1,r3
join r3 "$listen3" "$status3" r2
say "Three relays in a line: r1 - r2 - r3 (r1 and r3 are not linked)."

# ---- a terminal at each end ----

# The service that b offers is a real TCP service that is surely there: the web endpoint of r3.
enroll() {
  local name=$1 token
  shift
  token=$("$relay" --data "$work/r1" token terminal "$name") || fail "no token for $name"
  "$agent" --data "$work/$name" enroll "$token" >>"$work/$name.log" 2>&1 ||
    fail "$name could not enrol"
  start "$name" "$agent" --data "$work/$name" run "$@"
}
# On one machine everything would go directly: here the relays are to be seen at work.
enroll a --relays r1 --direct never
enroll b --relays r3 --expose "web=tcp://127.0.0.1:$status3" --allow 'web=*' --allow 'inbox=*'
for port in "$status1" "$status2" "$status3"; do
  await 20 "both terminals in the table at port $port" table_is_right "$port"
done
say "Two terminals: a logged in at r1, b at r3; every relay's table shows both."

# ---- the service and a file cross the relays ----

start forward "$agent" --data "$work/a" forward "127.0.0.1:$forward" b/web
await 20 "the service of b at a" service_crosses
say "b's web service answers at a through r1, r2 and r3; SHA-256 as asked directly: ${across%% *}"

head -c 20000000 /dev/urandom >"$work/demo-file.bin"
"$agent" --data "$work/a" send "$work/demo-file.bin" b: >>"$work/send.log" 2>&1 ||
  fail "send failed: $(tail -n 1 "$work/send.log")"
sent=$(sha256sum <"$work/demo-file.bin")
shopt -s globstar nullglob dotglob
landed=("$work"/b/**/demo-file.bin)
[ ${#landed[@]} -eq 1 ] || fail "the file did not land in b's inbox"
[ "$(sha256sum <"${landed[0]}")" = "$sent" ] || fail "the file that landed has another hash"
say "20 MB sent from a to b's inbox; SHA-256 at both ends: ${sent%% *}"

await 20 "equal tables at every relay" tables_are_equal
await 5 "both terminals in the table of r2" table_is_right "$status2"
say "The tables of all three relays are equal (hash $(table_hash "$status1"))."

if [ "$check" = yes ]; then
  say "demo: all right"
  exit 0
fi

cat <<END

It runs until Ctrl-C. Try, in another window:

  a relay's status    http://127.0.0.1:$status1/api/v1/status   (r2: $status2, r3: $status3)
  b's service at a    http://127.0.0.1:$forward/
  the terminals       $agent --data $work/a ls
  a round trip        $agent --data $work/a ping b
  its path            $agent --data $work/a paths
  the relays          $relay --data $work/r1 relays
END
while :; do
  for pid in "${pids[@]}"; do
    kill -0 "$pid" 2>/dev/null || fail "a process of the mesh ended"
  done
  sleep 1
done
