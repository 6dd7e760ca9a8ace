"""`python -m gr00t_trt.tools.metadata`, the same as `gr00t-trt metadata`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
