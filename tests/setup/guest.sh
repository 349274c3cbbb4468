#!/bin/sh
# Installs what builds and runs the guest of tests/guest from Debian, unless it is there already. No kernel: the guest has its own.
set -eu

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

missing=""
for package in e2fsprogs mmdebstrap qemu-system-x86; do
    installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
apt-get update -qq
echo "installing from Debian:$missing"
# shellcheck disable=SC2086 -- a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
