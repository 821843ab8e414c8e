#!/usr/bin/env bash
# usage: scripts/build-docs.sh
# Builds the documentation into build/site; every warning is an error. What it needs is installed into
# build/docs-venv: pinned and hashed Python packages from requirements/docs.txt, and, where there is npm, the one
# script that draws diagrams in the reader's browser. Without npm they are shown as text.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly venv=build/docs-venv requirements=requirements/docs.txt
readonly mermaid=11.16.0
readonly mermaid_sha512=Zvm3kbstgdpvIJPPItlL7fppIZ3kibvc1oZIGxdvk9t6UFz6flv+Jw7FtRGKwfcI8OckmH04LqG6LlS6X4B1pA==

mkdir -p build
if ! cksum "$requirements" "$0" | cmp -s - "$venv/installed"; then
    rm -rf "$venv"
    "${PYTHON:-.venv/bin/python}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --require-hashes -r "$requirements"
    if command -v npm >/dev/null; then
        (
            cd "$venv"
            npm pack --silent "mermaid@$mermaid" >/dev/null
            bin/python -c 'import base64, hashlib, sys
found = base64.b64encode(hashlib.sha512(open(sys.argv[1], "rb").read()).digest()).decode()
sys.exit(0 if found == sys.argv[2] else "docs: the package of mermaid is another one than is pinned")
' "mermaid-$mermaid.tgz" "$mermaid_sha512"
            tar -xzf "mermaid-$mermaid.tgz" package/dist/mermaid.min.js
            rm "mermaid-$mermaid.tgz"
        )
    else
        echo "docs: without npm, diagrams are shown as text" >&2
    fi
    cksum "$requirements" "$0" >"$venv/installed"
fi

script=$PWD/$venv/package/dist/mermaid.min.js
if [ -e "$script" ]; then export OVERNIGHT_MERMAID=$script; fi
# (The theme's authors print a notice about the tool they are writing next.)
NO_MKDOCS_2_WARNING=1 "$venv/bin/mkdocs" build --strict --quiet --clean
"$venv/bin/python" - <<'PYTHON'
"""No page of the site may ask another host for anything."""

import re
import sys
from pathlib import Path

asks = re.compile(r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//|<link[^>]+(?:stylesheet|icon|preload|preconnect)[^>]+href=["']?(?:https?:)?//""")
bad = [str(page) for page in Path("build/site").rglob("*.html") if asks.search(page.read_text())]
sys.exit(f"pages that ask another host: {bad}" if bad else 0)
PYTHON
echo "build/site/index.html"
