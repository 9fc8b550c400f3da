#!/bin/sh
# Makes sure that the image named by the Dockerfile's FROM exists.
#
# In order: it is there already; it can be pulled; it is built here with debootstrap from the package mirror that this
# machine's own apt uses (needs root, about a minute) and kept as a tarball in out/docker for the next time.
# The built image carries the machine's apt sources, its apt proxy and check settings and, for https mirrors, its CA
# bundle: that is what makes `apt-get` work inside a build here. It is an image for this machine, not one to publish.
set -eu

image=debian:bookworm-slim
suite=bookworm
root=$(cd "$(dirname "$0")/.." && pwd)
state=$root/out/docker
tarball=$state/debian-$suite.tar.gz
pull_deadline_s=${VPX_PULL_S:-60}

say() { echo "base: $*"; }

# "URI SUITE COMPONENT" lines of this machine's apt, whatever form its sources have; nothing on another distribution.
machine_sources() {
    command -v apt-get >/dev/null || return 0
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' 2>/dev/null |
        awk -v s="$suite" '$2 == s || $2 == s "-updates" || $2 == s "-security"' | sort -u
}

# What in this machine's apt settings decides how a mirror is reached, and nothing else.
machine_apt_settings() {
    command -v apt-config >/dev/null || return 0
    apt-config dump Acquire |
        grep -E '^Acquire::(https?::[Pp]roxy|Check-Valid-Until|Check-Date|Retries|Languages|ForceIPv)' || true
}

# Documentation stays out, as in the published slim image; copyright files stay in.
write_slim_rules() {
    cat >"$1" <<'RULES'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
RULES
}

build_tarball() {
    command -v debootstrap >/dev/null || { say "can't pull $image, and debootstrap is not installed" >&2; exit 1; }
    [ "$(id -u)" -eq 0 ] || { say "can't pull $image; building it with debootstrap needs root" >&2; exit 1; }
    sources=$(machine_sources)
    # The suite's own archive, not an -updates or -security one.
    mirror=${VPX_DEBIAN_MIRROR:-$(echo "$sources" | awk -v s="$suite" '$2 == s { print $1; exit }')}
    mirror=${mirror:-http://deb.debian.org/debian}
    tree=$(mktemp -d "$state/base.XXXXXX")
    trap 'rm -rf "$tree"' EXIT INT TERM
    chmod 755 "$tree"
    debootstrap --variant=minbase "$suite" "$tree" "$mirror" >"$state/debootstrap.log" 2>&1 || {
        tail -n 20 "$state/debootstrap.log" "$tree/debootstrap/debootstrap.log" >&2 2>/dev/null || true
        say "debootstrap from the configured mirror failed" >&2
        exit 1
    }
    if [ -n "$sources" ]; then
        echo "$sources" | sed 's/^/deb /' >"$tree/etc/apt/sources.list"
    else
        printf 'deb %s %s\n' "$mirror" "$suite main" "$mirror" "$suite-updates main" \
            http://deb.debian.org/debian-security "$suite-security main" >"$tree/etc/apt/sources.list"
    fi
    machine_apt_settings >"$tree/etc/apt/apt.conf.d/90machine"
    if grep -q '^deb https:' "$tree/etc/apt/sources.list" && [ -f /etc/ssl/certs/ca-certificates.crt ]; then
        install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
    fi
    write_slim_rules "$tree/etc/dpkg/dpkg.cfg.d/slim"
    find "$tree/usr/share/doc" -type f ! -name copyright -delete
    rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/* \
        "$tree"/var/log/*.log "$tree"/usr/share/man/* "$tree"/usr/share/info/* "$tree"/usr/share/locale/*
    # Not the machine's: the engine writes these two into every container.
    rm -f "$tree/etc/resolv.conf" "$tree/etc/hostname"
    tar -C "$tree" --numeric-owner --xattrs --one-file-system -cf - . | gzip -1 >"$tarball.new"
    mv "$tarball.new" "$tarball"
}

if docker image inspect "$image" >/dev/null 2>&1; then
    say "$image is here"
    exit 0
fi
mkdir -p "$state"
if timeout "$pull_deadline_s" docker pull "$image" >"$state/pull.log" 2>&1; then
    say "pulled $image"
    exit 0
fi
say "can't pull $image ($(tail -n 1 "$state/pull.log" | cut -c1-160))"
if [ ! -s "$tarball" ]; then
    say "building it with debootstrap, log in $state/debootstrap.log"
    build_tarball
fi
docker import --change 'CMD ["bash"]' "$tarball" "$image" >/dev/null
say "imported $image from $tarball"
