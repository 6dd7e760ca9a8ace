"""`python -m gr00t_trt.finetune`, the same as `gr00t-trt finetune`."""

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
