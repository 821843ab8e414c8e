#!/usr/bin/env bash
# usage: scripts/setup.sh demo|dev
# Makes .venv ready to run Overnight (demo) or to develop it (dev, which includes demo), and does
# nothing when it already is. Everything comes from the pinned, hashed files in requirements/, then
# this folder itself is installed in editable mode.
#
# May be stopped at any moment and run again. PYTHON=... names the interpreter; UV= makes it use
# pip although there is a uv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly home=$PWD venv=.venv python=.venv/bin/python
readonly uv=${UV-uv}

case "${1:-}" in
    demo) requirements=requirements/embedded.txt ;;
    dev) requirements=requirements/dev.txt ;;
    *) sed -n '2s/^# //p' "$0" >&2 && exit 2 ;;
esac

say() { printf 'setup: %s\n' "$*" >&2; }

# What a finished installation depends on. The folder is part of it because scripts and the
# editable install hold absolute paths: a moved checkout needs a new environment.
fingerprint() { printf '%s\n' "$1 in $home" && cksum pyproject.toml "$2" scripts/setup.sh; }

works() { "$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

is_installed() { # is_installed SET REQUIREMENTS
    [ -e "$venv/installed-$1" ] && [ ! -e "$venv/installing" ] &&
        [ "$(fingerprint "$1" "$2")" = "$(cat "$venv/installed-$1")" ]
}

if works; then
    if is_installed dev requirements/dev.txt; then exit 0; fi
    if [ "$1" = demo ] && is_installed demo requirements/embedded.txt; then exit 0; fi
fi

# A name on PATH proves nothing: pyenv's shims are there for versions that are not active, and
# fail when run. So each candidate is run, and the first one new enough is taken.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            # the interpreter itself, not the shim
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || say "PYTHON=$PYTHON does not run, or is older than 3.11; looking for another"
    done
    say "no Python 3.11 or newer could be run (tried python3, python3.13, python3.12, python3.11, python)."
    say "Install one, or name one you have:  make setup PYTHON=/path/to/python3.13"
    return 1
}

has_uv() { [ -n "$uv" ] && "$uv" --version >/dev/null 2>&1; }

make_venv() {
    local base
    base=$(find_python)
    rm -rf "$venv"
    say "making $venv with $("$base" --version 2>&1)"
    # uv may use any interpreter that is there; it must not fetch one.
    if has_uv && UV_PYTHON_DOWNLOADS=never "$uv" venv --quiet --python "$base" "$venv"; then return; fi
    if "$base" -m venv "$venv"; then return; fi
    rm -rf "$venv"
    say "$base cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv. Or install uv."
    return 1
}

# install ARGUMENT...: with uv where it works; a uv that is there and fails (no access where pip has
# it, say) is no reason to give up.
install() {
    if has_uv; then
        if UV_PYTHON_DOWNLOADS=never "$uv" pip install --quiet --python "$python" "$@"; then return; fi
        say "$uv could not; trying pip"
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then "$python" -m ensurepip --upgrade >/dev/null; fi
    "$python" -m pip install --quiet --disable-pip-version-check --no-input "$@"
}

# `installing` stands while packages are being written: an interrupted installation may have left
# half a package behind that pip takes for a whole one, so it is not built upon.
if [ -e "$venv/installing" ] || ! works; then
    make_venv
elif cat "$venv"/installed-* 2>/dev/null | grep -q ' in ' &&
    ! cat "$venv"/installed-* | grep -qxF -e "demo in $home" -e "dev in $home"; then
    say "this folder has moved"
    make_venv
fi
rm -f "$venv"/installed-*
touch "$venv/installing"
say "installing $(grep -c '^[a-z].*==' "$requirements") pinned packages from $requirements"
install --require-hashes -r "$requirements"
# The build backend is among the pinned packages, so nothing is fetched for this step.
install --no-deps --no-build-isolation --editable .
# uv compiles nothing, and where PYTHONDONTWRITEBYTECODE is set nothing ever would: every start of a
# process would take seconds longer. Some packages carry templates that are no valid Python; never mind.
"$python" -m compileall -q -j 0 "$venv"/lib api cli migrations models worker >/dev/null 2>&1 || true
fingerprint "$1" "$requirements" >"$venv/installed-$1"
rm "$venv/installing"
say "ready: $venv/bin/overnight"
