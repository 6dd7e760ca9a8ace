"""`python -m gr00t_trt.report`, the same as `gr00t-trt report`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
