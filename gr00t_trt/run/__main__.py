"""`python -m gr00t_trt.run`, the same as `gr00t-trt run`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
