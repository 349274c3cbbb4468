#!/bin/sh
# `make fresh`: makes a bare Debian (minbase with make, git and python3-venv), clones the committed checkout into it, and runs the given make
# targets there from nothing. Everything happens in namespaces and a folder of its own, which are gone at the end; the network is this machine's.
#
#   fresh.sh [--tmpfs] [--go] [--run "TARGETS"] [RELEASE...]     releases: bookworm trixie (default: both)
#
# --tmpfs  /tmp is a tmpfs of half the memory, as Debian 13 has it
# --go     the bare machine has this machine's Go, so that what is built with Go is built and tested, too
# --run    what make is called with, one line for each call (default: demo, then test)
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
tmpfs="" go="" releases=""
run="demo
test"
while [ $# -gt 0 ]; do
    case $1 in
    --tmpfs) tmpfs=1 ;;
    --go) go=$(go env GOROOT) ;;
    --run) run=$2 && shift ;;
    -*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) releases="$releases $1" ;;
    esac
    shift
done

if ! command -v debootstrap >/dev/null; then
    echo "installing from Debian: debootstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
fi

# This machine's own way to packages is carried in: where apt, pip and Go look, through which proxy, and whom they trust.
own=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(sed -nE 's/^(URIs:|deb( \[[^]]*\])?) +([^ ]+).*/\3/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null | head -n 1)

carry() { # PATH...: copy what is there to the same place in the bare machine
    for path in "$@"; do
        [ -e "$path" ] || continue
        mkdir -p "$root$(dirname "$path")"
        cp -aL "$path" "$root$(dirname "$path")/"
    done
}

configure() {
    rm -f "$root/etc/apt/sources.list"
    for path in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
        [ ! -e "$path" ] || { carry "$path" && sed -i "s/\b$own\b/$release/g" "$root$path"; }
    done
    # Of apt's other settings those that say how to fetch.
    for path in $(grep -ls '^ *Acquire' /etc/apt/apt.conf /etc/apt/apt.conf.d/*); do carry "$path"; done
    carry /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/apt/keyrings /etc/pip.conf /root/.config/pip /root/.pip /root/.config/go /root/.netrc
    # shellcheck disable=SC2086 -- folders of wheels, where pip is told of some
    carry ${PIP_FIND_LINKS:-}
    carry /etc/resolv.conf /etc/hosts /usr/local/share/ca-certificates /etc/ssl/certs/ca-certificates.crt
}

# What of the environment says where to fetch from.
environment() {
    env | grep -E '^(PIP_|GO(PROXY|NOPROXY|SUMDB|NOSUMDB|PRIVATE|FLAGS)=|[a-z]+_proxy=|[A-Z]+_PROXY=|SSL_CERT_|CURL_CA_BUNDLE=|REQUESTS_CA_BUNDLE=|GIT_SSL_)' || true
}

one() { # RELEASE
    release=$1
    folder=$(mktemp -d "/var/tmp/datacache-fresh-$release.XXXXXX")
    trap clear_up EXIT
    root=$folder/root
    echo "== $release: a bare machine in $folder"
    mkdir "$root"
    debootstrap --variant=minbase --include=make,git,python3-venv,ca-certificates "$release" "$root" "$mirror" >"$folder/debootstrap.log" 2>&1 ||
        { tail -n 20 "$folder/debootstrap.log" && exit 1; }
    configure
    # Below /root, which nobody else may read: as where people try things out.
    git clone -q --no-hardlinks "$here" "$root/root/datacache-csi"
    {
        environment | sed -E "s/'/'\\\\''/g; s/^([^=]+)=(.*)/export \1='\2'/"
        echo "export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin${go:+:$go/bin}"
        echo "cd /root/datacache-csi"
        echo "$run" | sed -E '/./!d; s/.*/echo "== make &"; make &/'
    } >"$root/root/run.sh"
    # The first process is the machine's init: with its end every other one ends.
    unshare --mount --pid --fork --kill-child --ipc --uts sh -euc '
        root=$1 tmpfs=$2 go=$3
        mount --bind "$root" "$root"
        mount --rbind /dev "$root/dev"
        mount --rbind /sys "$root/sys"
        mount -t proc proc "$root/proc"
        mount -t tmpfs tmpfs "$root/run"
        [ -z "$tmpfs" ] || mount -t tmpfs -o size=50%,mode=1777 tmpfs "$root/tmp"
        [ ! -d /lib/modules ] || { mkdir -p "$root/lib/modules" && mount --bind /lib/modules "$root/lib/modules"; }
        [ -z "$go" ] || { mkdir -p "$root$go" && mount --bind -o ro "$go" "$root$go"; }
        mkdir -p "$root/host"
        cd "$root"
        pivot_root . host
        umount -l /host
        hostname fresh
        exec sh -eu /root/run.sh' sh "$root" "$tmpfs" "$go"
}

clear_up() {
    # A loop device that was left behind names its file as the bare machine saw it.
    losetup --noheadings --raw --output NAME,BACK-INO,BACK-FILE | while read -r device inode file; do
        [ "$(stat -c %i "$root$file" 2>/dev/null)" != "$inode" ] || losetup --detach "$device" || true
    done
    rm -rf --one-file-system "$folder"
}

trap 'exit 130' INT TERM
verdict="" failed=0
for release in ${releases:-bookworm trixie}; do
    began=$(date +%s)
    # Not in a condition: there a command that fails would not end the subshell.
    set +e
    (set -e && one "$release")
    status=$?
    set -e
    [ $status = 0 ] && word=green || { word="FAILED with $status" failed=1; }
    verdict="$verdict== $release${tmpfs:+, /tmp a tmpfs}: $word after $(($(date +%s) - began)) s
"
done
printf %s "$verdict"
exit $failed
