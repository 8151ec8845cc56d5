#!/usr/bin/env bash
# Installs, upgrades, removes and purges the Debian packages in an empty Debian (debootstrap), as root, and has a relay
# and an agent of them serve in between. No systemd runs there: daemons are started by hand, and a stand-in for
# systemctl notes what the packages ask of it.
#
#   deploy/test-deb.sh           debug builds of this tree; the empty Debian is kept in target/ for the next time
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case "$target" in /*) ;; *) target=$root/$target ;; esac
suite=${SUITE:-bookworm}
mirror=${MIRROR:-http://deb.debian.org/debian}
base=$target/debootstrap-$suite.tar
work=
daemons=()

clean_up() {
    local code=$?
    trap - EXIT
    if [ "$code" -ne 0 ] && [ -n "$work" ]; then
        tail -n 20 "$work"/debian/var/log/tasuki-*.log "$work"/*.log >&2 || true
        echo "test-deb: failed (line $line)" >&2
    fi
    if [ ${#daemons[@]} -gt 0 ]; then kill -KILL "${daemons[@]}" 2>/dev/null || true; fi
    if [ -n "$work" ]; then
        umount "$work/debian/proc" 2>/dev/null || true
        rm -rf --one-file-system -- "$work"
    fi
    exit "$code"
}
line='?'
trap clean_up EXIT
trap 'line=$LINENO' ERR
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf 'test-deb: %s\n' "$*"; }
in_debian() { chroot "$work/debian" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }

# Tries a command for 20 s.
await() {
    local end=$((SECONDS + 20))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ]
        sleep 0.1
    done
}

[ "$(id -u)" -eq 0 ] || { echo "test-deb: needs root" >&2; exit 1; }
mkdir -p "$target"
work=$(mktemp -d "${TMPDIR:-/tmp}/tasuki-deb.XXXXXX")
chmod 755 "$work"

say "packages of two versions"
VERSION=0.0.1-1 "$root/deploy/build-deb.sh" --debug "$work/old"
VERSION=0.0.2-1 "$root/deploy/build-deb.sh" --debug "$work/new"

if [ ! -f "$base" ]; then
    say "an empty Debian $suite"
    debootstrap --variant=minbase "$suite" "$work/debian" "$mirror" >"$work/debootstrap.log"
    rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/*
    tar --one-file-system -C "$work" -cf "$base.new" debian
    mv "$base.new" "$base"
else
    tar -C "$work" -xf "$base"
fi
debian=$work/debian
mount -t proc proc "$debian/proc"
cp "$work"/old/*.deb "$work"/new/*.deb "$debian/tmp/"

# What stands for a running systemd: the folder by which it is recognised, and a systemctl that writes down its orders.
# 'is-enabled' and the like answer no.
mkdir -p "$debian/run/systemd/system"
printf '#!/bin/sh\necho "$@" >>/var/log/systemctl.log\ncase "$*" in *is-*) exit 1 ;; esac\n' >"$debian/usr/bin/systemctl"
chmod 755 "$debian/usr/bin/systemctl"
orders() { cat "$debian/var/log/systemctl.log" 2>/dev/null || true; }
forget_orders() { rm -f "$debian/var/log/systemctl.log"; }

# The packages may need libraries only; what they pull in besides would come from the network.
install() { in_debian dpkg --force-confdef --force-confold -i $(cd "$debian" && ls tmp/*"_$1-1_"*.deb | sed 's,^,/,') >>"$work/dpkg.log" 2>&1; }

say "install"
install 0.0.1
in_debian getent passwd tasuki >/dev/null
[ -f "$debian/usr/lib/systemd/system/tasuki-relay.service" ]
[ -f "$debian/etc/tasuki/relay.toml" ] && [ -f "$debian/etc/tasuki/agent.toml" ]
[ ! -e "$debian/var/lib/tasuki-relay" ]
orders | grep -q 'preset tasuki-relay.service'
orders | grep -q 'preset tasuki-agent.service'
in_debian tasuki-relay --version
in_debian tasuki-agent --version

# As the unit does: what root made becomes the user's, and the daemon runs as that user.
free_port() { shuf -i 20000-31999 -n 1; }
listen=127.0.0.1:$(free_port)
status=127.0.0.1:$(free_port)
start() {
    local name=$1
    in_debian chown -R tasuki:tasuki "/var/lib/$name"
    in_debian chmod 0710 "/var/lib/$name"
    chroot --userspec=tasuki:tasuki "$debian" "/usr/bin/$name" run --data "/var/lib/$name" \
        --config "/etc/tasuki/${name#tasuki-}.toml" >>"$debian/var/log/$name.log" 2>&1 &
    daemons+=($!)
}
stop() {
    kill "${daemons[@]}"
    wait "${daemons[@]}"
    daemons=()
}
attached() { in_debian tasuki-agent status --json 2>/dev/null | grep -q '"role": *"primary"'; }
serve() {
    start tasuki-relay
    await in_debian tasuki-relay status >/dev/null 2>&1
    [ -d "$debian/var/lib/tasuki-agent" ] || in_debian tasuki-agent enroll "$(in_debian tasuki-relay token terminal t1)"
    start tasuki-agent
    await attached
}

say "a mesh of what is installed"
in_debian tasuki-relay init --name r1 --listen "$listen" --advertise "$listen" --status "$status" >"$work/init.log"
serve

say "upgrade"
stop
echo 'log = "debug"' >>"$debian/etc/tasuki/relay.toml"
forget_orders
install 0.0.2
orders | grep -q 'restart tasuki-relay.service'
grep -q '^log = "debug"' "$debian/etc/tasuki/relay.toml"
in_debian dpkg-query -W -f '${Version}\n' tasuki-relay | grep -qx 0.0.2-1
serve
in_debian tasuki-relay terminals | grep -q t1
stop

say "remove"
forget_orders
in_debian dpkg --remove tasuki-relay tasuki-agent >>"$work/dpkg.log" 2>&1
orders | grep -q 'stop tasuki-relay.service'
orders | grep -q 'stop tasuki-agent.service'
[ ! -e "$debian/usr/bin/tasuki-relay" ]
[ -f "$debian/var/lib/tasuki-relay/identity.pem" ] && [ -f "$debian/var/lib/tasuki-agent/identity.pem" ]
[ -f "$debian/etc/tasuki/relay.toml" ]

say "install again: everything is as it was"
install 0.0.2
serve
in_debian tasuki-relay terminals | grep -q t1
stop

say "purge"
in_debian dpkg --purge tasuki-relay tasuki-agent >>"$work/dpkg.log" 2>&1
for path in /var/lib/tasuki-relay /var/lib/tasuki-agent /etc/tasuki /usr/lib/systemd/system/tasuki-relay.service; do
    if [ -e "$debian$path" ] || [ -L "$debian$path" ]; then
        echo "test-deb: $path is left" >&2
        exit 1
    fi
done
say "all right"
