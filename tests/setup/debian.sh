#!/bin/sh
# Installs what the tests and the demo need from Debian, unless it is there already. Starts no service.
set -eu
# nfs-ganesha reads the mount table here; a minimal Debian lacks the link.
[ -e /etc/mtab ] || ln -s /proc/self/mounts /etc/mtab
# The library's package is named after its version: libnfs13 on Debian 12, libnfs14 on Debian 13.
libnfs=$(apt-cache search --names-only "^libnfs1[34]$" 2>/dev/null | cut -d" " -f1 | head -n 1)
packages="netbase openssl nfs-ganesha nfs-ganesha-vfs rpcbind ${libnfs:-libnfs13} libnfs-utils erofs-utils nginx-light fio curl kmod python3-venv"
missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
echo "installing from Debian:$missing"
apt-get update -qq
[ -n "$libnfs" ] || missing=$(echo "$missing" | sed "s/libnfs13/$(apt-cache search --names-only '^libnfs1[34]$' | cut -d' ' -f1 | head -n 1)/")
# A policy that says no keeps the servers from starting by themselves; the tests start their own.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; trap 'rm -f "$policy"' EXIT; }
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
