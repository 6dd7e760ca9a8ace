"""`python -m gr00t_trt.deploy.bundle`, the same as `gr00t-trt bundle`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
