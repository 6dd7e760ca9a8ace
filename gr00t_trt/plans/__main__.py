"""`python -m gr00t_trt.plans`, the same as `gr00t-trt plans`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
