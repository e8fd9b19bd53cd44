"""The container's health: exit status 0 while GET /health answers 200."""

import http.client
import os
import sys


def main() -> int:
    """Ask the server of this container; its port is PENSTOCK_PORT, or 8000."""
    port = int(os.environ.get("PENSTOCK_PORT") or 8000)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
