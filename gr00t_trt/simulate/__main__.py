"""`python -m gr00t_trt.simulate`, the same as `gr00t-trt simulate`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
