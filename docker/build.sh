#!/bin/sh
# Builds the image `vpx:local` that docker-compose.yml runs.
#
#   docker/build.sh            make the build context in out/docker-context, then the image
#   docker/build.sh context    only the context: `docker-compose build` then does the rest
#
# The wheels are fetched here, outside the image, by this machine's pip: its index, proxy, CA and credentials (pip.conf,
# PIP_* variables) work as always and never reach a layer. A second run with the same lock fetches nothing.
set -eu

image=vpx:local
root=$(cd "$(dirname "$0")/.." && pwd)
state=$root/out/docker
context=$root/out/docker-context
packages="proto runtime vpxd vpxa hostd vmx vswitch"

fail() { echo "build: $*" >&2; exit 1; }

# The engine's processor, not this machine's: they differ where docker runs in a virtual machine.
wheel_architecture() {
    case $(docker version --format '{{.Server.Arch}}') in
        amd64) echo x86_64 ;;
        arm64) echo aarch64 ;;
        *) fail "no engine answers, or one of an architecture that has no wheels" ;;
    esac
}

# Wheels for Debian bookworm's CPython 3.11 (glibc 2.36), each with a hash of the lock: pip refuses any other file.
# pip matches platform tags by name, so every older glibc is named.
fetch_wheels() {
    architecture=$(wheel_architecture)
    key=$(cksum <"$root/requirements.lock" | tr ' ' -)-$architecture
    wheels=$state/wheels
    [ "$(cat "$wheels/.key" 2>/dev/null)" != "$key" ] || return 0
    rm -rf "$wheels"
    mkdir -p "$wheels"
    set -- --platform "manylinux2014_$architecture"
    minor=17
    while [ "$minor" -le 36 ]; do
        set -- "$@" --platform "manylinux_2_${minor}_$architecture"
        minor=$((minor + 1))
    done
    "$python" -m pip download -qq --dest "$wheels" --only-binary :all: --implementation cp --python-version 3.11 \
        "$@" --require-hashes -r "$root/requirements.lock" || fail "pip could not fetch the wheels"
    echo "$key" >"$wheels/.key"
}

make_context() {
    for package in $packages; do
        [ -d "$root/$package" ] || fail "the package $package is missing"
    done
    [ -n "$(find "$root/proto" -name '*_pb2.py' -print -quit)" ] || fail "the gRPC stubs are not generated yet"
    rm -rf "$context"
    mkdir -p "$context/wheels" "$context/app"
    # Hard links where the file system has them; docker looks at content only.
    cp -l "$state"/wheels/*.whl "$context/wheels" 2>/dev/null || cp "$state"/wheels/*.whl "$context/wheels"
    cp -R "$root/docker/bin" "$root/docker/service" "$context"
    cp "$root/docker/Dockerfile" "$root/requirements.lock" "$context"
    # shellcheck disable=SC2086  # the list is meant to split
    tar -C "$root" --exclude=__pycache__ --exclude='*.pyi' --exclude='*.proto' -cf - $packages | tar -C "$context/app" -xf -
    chmod -R u=rwX,go=rX "$context/app" "$context/bin" "$context/service"
}

python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
mkdir -p "$state"
fetch_wheels
make_context
[ "${1:-}" != context ] || exit 0

# Docker takes these from the environment of the build and keeps them out of the image's history.
set --
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    eval "value=\${$name:-}"
    [ -z "$value" ] || set -- "$@" --build-arg "$name"
done
# The host's network: behind a proxy or resolver on this machine's own addresses a bridge would see neither.
docker build --network host "$@" -t "$image" "$context" >"$state/build.log" 2>&1 || {
    tail -n 30 "$state/build.log" >&2
    fail "the image was not built; the whole log is in $state/build.log"
}
echo "build: $image, $(docker image inspect --format '{{.Size}}' "$image" | awk '{ printf "%.0f MB", $1 / 1e6 }')"
