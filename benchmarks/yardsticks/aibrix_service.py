"""AIBrix's metadata service with a model server behind it: `python aibrix_service.py URL PORT`.

Run by the Python of AIBrix's environment. Outside of Kubernetes the service runs only with `--dry-run`:
files and state on the local disk, and an echo for a model. Its own source of calls to a gateway, with
its defaults, is put in the echo's place here; all else is as it is installed.
"""

import sys

from aibrix.batch.client import GatewayEndpointSource
from aibrix.metadata import app


def main() -> None:
    """Serve until ended."""
    url, port = sys.argv[1:]
    app.NoopEndpointSource = lambda: GatewayEndpointSource(url)
    sys.argv[1:] = ["--dry-run", "--host", "127.0.0.1", "--port", port]
    app.main()


if __name__ == "__main__":
    main()
