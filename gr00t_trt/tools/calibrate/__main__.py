"""`python -m gr00t_trt.tools.calibrate`, the same as `gr00t-trt calibrate`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
