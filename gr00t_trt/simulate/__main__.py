"""`python -m gr00t_trt.simulate`."""

import sys

from .program import main

sys.exit(main())
