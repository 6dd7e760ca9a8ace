"""`python -m gr00t_trt.measure` is `gr00t-trt measure`."""

import sys

from . import main

sys.exit(main())
