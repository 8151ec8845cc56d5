#!/usr/bin/env bash
# Builds the Debian packages tasuki-relay and tasuki-agent. Needs Rust and cargo-deb (cargo install --locked cargo-deb).
#
#   deploy/build-deb.sh [--debug] [FOLDER]     packages go to FOLDER (default: target/debian); --debug packs debug
#                                              builds, for tests
#
# Honours CARGO_TARGET_DIR; VERSION=1.2.3 gives another version than the crates'.
set -euo pipefail

profile=release
if [ "${1-}" = --debug ]; then
    profile=dev
    shift
fi
case "${1-}" in -*)
    echo "usage: $0 [--debug] [FOLDER]" >&2
    exit 2
    ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-${CARGO_TARGET_DIR:-$root/target}/debian}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
cargo deb --version >/dev/null 2>&1 || {
    echo "cargo-deb is missing: cargo install --locked cargo-deb" >&2
    exit 1
}

cd "$root"
# Tests build the whole workspace: then it is built the same way here, once.
crates=(-p tasuki-relay -p tasuki-terminal)
[ "$profile" = release ] || crates=(--workspace)
cargo build --locked --quiet --profile "$profile" "${crates[@]}" --bins
options=(--locked --no-build --profile "$profile" --output "$out")
# Debug builds are for tests: small enough and quick.
[ "$profile" = release ] || options+=(--fast)
[ -z "${VERSION-}" ] || options+=(--deb-version "$VERSION")
for crate in tasuki-relay tasuki-terminal; do
    cargo deb --quiet -p "$crate" "${options[@]}"
done
