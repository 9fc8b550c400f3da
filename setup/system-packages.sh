#!/bin/bash
# Installs what the product needs from the system's packages, where it is missing: QEMU, a C compiler for the guest's
# program, the tools that write the guest's root disk, Python's venv. Does nothing, and needs no rights, where all of it is there. Debian and Ubuntu.
set -euo pipefail

missing=()
need() { # need COMMAND-OR-FILE PACKAGE...
    if [[ $1 == /* ]]; then [[ -e $1 ]] || missing+=("${@:2}"); else command -v "$1" >/dev/null || missing+=("${@:2}"); fi
}
need qemu-system-x86_64 qemu-system-x86
need gcc gcc
need /usr/include/stdio.h libc6-dev
need dpkg-deb dpkg
need qemu-img qemu-utils
need syslinux syslinux
need /usr/lib/syslinux/mbr/mbr.bin syslinux-common
need mcopy mtools
need /usr/sbin/mkfs.fat dosfstools
need /usr/sbin/mke2fs e2fsprogs
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [[ ${1:-} == compose ]]; then
    need dockerd docker.io
    command -v docker-compose >/dev/null || docker compose version >/dev/null 2>&1 || missing+=(docker-compose)
    need debootstrap debootstrap
fi

lists=present
apt-cache show busybox-static >/dev/null 2>&1 || lists=missing
[[ ${#missing[@]} -eq 0 && ($lists == present || -e out/guest/vmlinuz) ]] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "this system has no apt-get: install by its own means what is missing (${missing[*]}), then run make again" >&2
    exit 1
fi
as_root=()
if ((EUID != 0)); then
    command -v sudo >/dev/null || { echo "run as root, or install them by: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
if ((${#missing[@]})); then
    echo "installing system packages: ${missing[*]}"
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
