"""`gr00t-trt-ask HOST`: one example observation sent to a server, and what comes back.

Exit status: 0 answered, 2 no answer or a refusal.
"""

from __future__ import annotations

import argparse
import os
import sys

from .errors import ServiceError
from .serve.ask import ask


def main() -> int:
    """Ask a server once; its keys, the shapes of its answer and the round trip go to stdout."""
    p = argparse.ArgumentParser(prog="gr00t-trt-ask", description="Send a server one example observation.")
    p.add_argument("host", nargs="?", default="localhost", help="where the server runs [%(default)s]")
    p.add_argument("--port", type=int, default=5555, metavar="N", help="its port [%(default)s]")
    p.add_argument("--http_server", action="store_true", help="HTTP instead of ZeroMQ")
    args = p.parse_args()
    args.api_token = os.environ.get("GR00T_API_TOKEN")
    try:
        ask(args)
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
