#!/usr/bin/env bash
# Compiles requirements/*.txt from pyproject.toml: pinned, hashed, and the same for every platform
# and every Python we support. Run it as `make requirements`; `make requirements UPGRADE=1` moves
# every pin to its newest version, otherwise pins stay where they are as far as pyproject.toml allows.
#
# The largest set is solved first and bounds the others, so that a package has one version in all
# all files and a smaller installation can grow into a larger one without replacing anything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=${UV:-uv}

if ! "$uv" --version >/dev/null 2>&1; then
    echo "make requirements needs uv (pip install uv): pip cannot solve for all platforms at once" >&2
    exit 1
fi

# compile NAME OPTION...: the two --no-emit options keep addresses of package indexes out of the
# file; whoever installs from it uses their own.
compile() {
    local file=requirements/$1.txt
    shift
    "$uv" pip compile "$@" --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make requirements" \
        --output-file "$file" >/dev/null
    echo "$file: $(grep -c '^[a-z].*==' "$file") packages"
}

compile dev pyproject.toml --extra embedded --extra tracing --group dev ${UPGRADE:+--upgrade}
compile embedded pyproject.toml --extra embedded --group build --constraint requirements/dev.txt
compile tracing pyproject.toml --extra tracing --constraint requirements/dev.txt
compile runtime pyproject.toml --constraint requirements/dev.txt
compile build --group build --constraint requirements/dev.txt
compile docs --group docs --constraint requirements/dev.txt
