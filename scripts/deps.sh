#!/bin/sh
# Installs what building, running and testing Backstay needs and this Debian lacks. Quick and offline when nothing is missing.
# Shell, because it runs before Rust is known to be there.
set -eu

say() { echo "deps: $*"; }
die() { say "$*" >&2; exit 1; }

# Debian 12's QEMU 7.2 can neither save memory as a mapped stream nor answer what the worker asks it.
QEMU_OLDEST=10
# The workspace's `rust-version`.
RUST_OLDEST=1.95

# package: what for
packages() {
    cat <<'LIST'
gcc: links Rust programs and builds SQLite and zstd
libc6-dev: headers for the same
pkg-config: finds C libraries for crates
ca-certificates: lets cargo reach its registry
binutils: assembles the microguest
dpkg-dev: tells which libraries the Debian package depends on
7zip: reads VHD chains in tests, independently of us
libnbd-bin: NBD client in tests, independently of us
kmod: module order of the Linux guest
cpio: initramfs of the Linux guest
fdisk: partition table of the Linux guest's disk
dosfstools: boot partition of the Linux guest's disk
e2fsprogs: data partition of the Linux guest's disk
btrfs-progs: file systems that share the space of files, in tests
xfsprogs: the same, of another kind
mtools: fills the boot partition without mounting it
syslinux: boot loader of the Linux guest
syslinux-common: its master boot record
xz-utils: unpacks test images
LIST
}

# Prints the packages of the list that are not installed, one a line.
missing_packages() {
    wanted=$(packages | cut -d: -f1)
    # shellcheck disable=SC2086 # one word per package is meant
    have=$(dpkg-query -W -f='${binary:Package} ${db:Status-Status}\n' $wanted 2>/dev/null || true)
    for package in $wanted; do
        printf '%s\n' "$have" | grep -Eq "^$package(:[a-z0-9]+)? installed\$" || echo "$package"
    done
}

# Succeeds when $1 prints a version of at least QEMU_OLDEST.
qemu_is_new() {
    version=$("$1" --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\).*/\1/p') || return 1
    [ -n "$version" ] && [ "$version" -ge "$QEMU_OLDEST" ]
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "root is needed for: $* (run as root, or install sudo)"
    fi
}

# What apt prints matters only when it fails.
apt_get() {
    log=$(mktemp)
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

candidate_is_new() {
    candidate=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
    dpkg --compare-versions "${candidate:-0}" ge "1:$QEMU_OLDEST"
}

# Prints this machine's own entry for suite $1 again for suite $2, in the form it is written in; empty when there is none.
copy_source() {
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        awk -v from="$1" -v to="$2" '
            function stanza(   i, n, words, hit) {
                n = split(suites, words, " ")
                for (i = 1; i <= n; i++) if (words[i] == from) hit = 1
                if (hit && !off && !done) { printf "%s", text; print "Suites: " to; done = 1 }
                text = ""; suites = ""; off = 0
            }
            /^#/ { next }
            /^[ \t]*$/ { stanza(); next }
            tolower($1) == "suites:" { suites = $0; sub(/^[^:]*:/, "", suites); next }
            tolower($1) == "enabled:" && $2 == "no" { off = 1 }
            { text = text $0 "\n" }
            END { stanza() }' "$file"
    done
}
copy_list() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -nE "s/^(deb( +\[[^]]*\])? +[^ ]+) +$1 +(.*)\$/\1 $2 \3/p" | head -n 1
}

enable_backports() {
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    suite="$codename-backports"
    if apt-cache policy | grep -q "n=$suite"; then return; fi
    entry=$(copy_source "$codename" "$suite" | awk 'NR > 1 && /^Types:/ { exit } { print }')
    target=/etc/apt/sources.list.d/$suite.sources
    if [ -z "$entry" ]; then
        entry=$(copy_list "$codename" "$suite")
        target=/etc/apt/sources.list.d/$suite.list
    fi
    [ -n "$entry" ] || die "QEMU $QEMU_OLDEST is in $suite, and no apt source for $codename was found to copy; add that suite and run again"
    say "enabling $suite in $target (a copy of this machine's own Debian source)"
    printf '%s\n' "$entry" | as_root tee "$target" >/dev/null
    apt_get update
}

install_packages() {
    missing=$(missing_packages)
    new_qemu=yes
    qemu_is_new qemu-system-x86_64 && qemu_is_new qemu-img && new_qemu=no
    if [ -z "$missing" ] && [ "$new_qemu" = no ]; then return; fi
    command -v apt-get >/dev/null ||
        die "this is no Debian: install by hand QEMU $QEMU_OLDEST or newer and: $(packages | cut -d: -f1 | tr '\n' ' ')"
    say "refreshing the package lists"
    apt_get update || say "the package lists could not be refreshed; trying with those that are here"
    if [ -n "$missing" ]; then
        for package in $missing; do say "installing $(packages | grep "^$package:")"; done
        # shellcheck disable=SC2086
        apt_get install --no-install-recommends $missing
    fi
    if [ "$new_qemu" = yes ]; then
        candidate_is_new || enable_backports
        candidate=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
        say "installing qemu-system-x86 and qemu-utils: run guests, and read disk images in tests"
        if apt-cache policy | grep -q "n=$candidate-backports"; then set -- -t "$candidate-backports"; else set --; fi
        apt_get install --no-install-recommends "$@" qemu-system-x86 qemu-utils
        qemu_is_new qemu-system-x86_64 || die "QEMU is still older than $QEMU_OLDEST: $(qemu-system-x86_64 --version 2>&1 | head -n 1)"
    fi
}

check_rust() {
    # rustup's default place, for a shell that has not read its profile yet
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if ! command -v cargo >/dev/null; then
        die "Rust $RUST_OLDEST or newer is needed and cargo was not found. Debian's rustc is too old. Install rustup (https://rustup.rs), then: rustup toolchain install stable"
    fi
    version=$(rustc --version | cut -d' ' -f2)
    dpkg --compare-versions "$version" ge "$RUST_OLDEST" ||
        die "Rust $RUST_OLDEST or newer is needed, this is $version. With rustup: rustup update stable"
    if ! command -v cargo-nextest >/dev/null; then
        say "installing cargo-nextest: runs the tests (several minutes, once)"
        cargo install --locked --quiet cargo-nextest
    fi
    if ! command -v cargo-deb >/dev/null; then
        say "installing cargo-deb: makes the Debian package (several minutes, once)"
        cargo install --locked --quiet cargo-deb ||
            say "cargo-deb could not be installed: no package can be made, and the test of it is skipped"
    fi
}

install_packages
check_rust
