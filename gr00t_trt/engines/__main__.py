"""`python -m gr00t_trt.engines`, the same as `gr00t-trt engines`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
