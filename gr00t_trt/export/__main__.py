"""`python -m gr00t_trt.export`, the same as `gr00t-trt export`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
