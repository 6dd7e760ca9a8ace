"""`python -m gr00t_trt.rollout`."""

import sys

from .program import main

sys.exit(main())
