#!/bin/sh
# Installs what the test cluster of tests/cluster needs from Debian, unless it is there already. Starts no service.
set -eu

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

missing=""
for package in buildah busybox-static containernetworking-plugins gcc iproute2 libc6-dev libseccomp-dev mmdebstrap openssl pkg-config util-linux; do
    installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
apt-get update -qq
echo "installing from Debian:$missing"
# shellcheck disable=SC2086 -- a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
