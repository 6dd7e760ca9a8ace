"""`python -m gr00t_trt.serve`, the same as `gr00t-trt serve`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
