"""`python -m gr00t_trt.tools.bisect`, the same as `gr00t-trt bisect`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
