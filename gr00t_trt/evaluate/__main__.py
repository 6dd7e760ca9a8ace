"""`python -m gr00t_trt.evaluate`, the same as `gr00t-trt evaluate`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
