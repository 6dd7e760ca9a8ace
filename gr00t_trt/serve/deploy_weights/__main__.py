"""`python -m gr00t_trt.serve.deploy_weights`, the same as `gr00t-trt deploy-weights`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
