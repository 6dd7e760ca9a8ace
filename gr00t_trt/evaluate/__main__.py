"""`python -m gr00t_trt.evaluate`."""

import sys

from .program import main

sys.exit(main())
