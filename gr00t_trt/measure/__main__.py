"""`python -m gr00t_trt.measure`, the same as `gr00t-trt measure`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
