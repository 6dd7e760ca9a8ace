"""`python -m gr00t_trt.rollout`, the same as `gr00t-trt rollout`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
