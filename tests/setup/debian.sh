#!/bin/sh
# Installs what the tests and the demo need from Debian, unless it is there already. Starts no service.
set -eu
# nfs-ganesha reads the mount table here; a minimal Debian lacks the link.
[ -e /etc/mtab ] || ln -s /proc/self/mounts /etc/mtab

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

missing=""
for package in netbase openssl nfs-ganesha nfs-ganesha-vfs rpcbind libnfs-utils erofs-utils e2fsprogs xfsprogs btrfs-progs util-linux-extra nginx-light fio curl iproute2 kmod python3-venv; do
    installed "$package" || missing="$missing $package"
done
# The library is named after its version: libnfs13 on Debian 12, libnfs14 on Debian 13.
installed libnfs13 || installed libnfs14 || missing="$missing libnfs"
[ -n "$missing" ] || exit 0
apt-get update -qq
library=$(apt-cache search --names-only '^libnfs1[34]$' | cut -d' ' -f1 | head -n 1)
missing=$(echo "$missing" | sed "s/ libnfs$/ $library/")
echo "installing from Debian:$missing"
# A policy that says no keeps the servers from starting by themselves; the tests start their own.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; trap 'rm -f "$policy"' EXIT; }
# shellcheck disable=SC2086 -- a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
