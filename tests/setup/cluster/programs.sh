#!/bin/sh
# Builds the programs of the test cluster, or those named as arguments alone, into a cache folder, those that are there already excepted.
# Its name is printed last; with --where that alone is done. Another version is another folder, so checkouts of different commits do not
# disturb each other.
set -eu
cd "$(dirname "$0")"
key=$(cat programs.txt ./*/go.mod | sha256sum | cut -c1-12)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/datacache-csi/cluster/programs-$key"
[ "${1-}" = --where ] && { echo "$folder"; exit 0; }
command -v go >/dev/null || { echo "Go is not installed: the programs of the test cluster cannot be built" >&2; exit 1; }
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9

kubernetes=$(cd kubernetes && go list -m -f '{{.Version}}' k8s.io/kubernetes)
number=${kubernetes#v}
stamp="-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/component-base/version.gitMajor=${number%%.*}"
stamp="$stamp -X k8s.io/component-base/version.gitMinor=$(echo "$number" | cut -d. -f2)"

build() { # NAME MODULE PACKAGE
    echo "building $1" >&2
    unfinished=$(mktemp -d "$folder/.$1.XXXXXX")
    # Static, so that an image can hold a program alone; but runc's first steps in a container are written in C.
    export CGO_ENABLED=0 GOFLAGS="${GOFLAGS-} -trimpath"
    [ "$1" != runc ] || export CGO_ENABLED=1 GOFLAGS="$GOFLAGS -tags=seccomp"
    if [ "$2" = - ]; then
        (cd / && GOBIN="$unfinished" nice -n 10 go install -ldflags "-s -w" "$3")
    else
        (cd "$2" && nice -n 10 go build -ldflags "-s -w $stamp" -o "$unfinished/$1" "$3")
    fi
    mv "$unfinished"/* "$folder/$1"
    rmdir "$unfinished"
}

rm -rf "$folder"/.*.??????
sed '/^#/d' programs.txt | while read -r name module package; do
    case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
    [ -x "$folder/$name" ] || (build "$name" "$module" "$package") || exit 1
done
echo "$folder"
