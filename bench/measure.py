#!/usr/bin/env python3
"""`python bench/measure.py FOLDER`: measures a model in many forms, without installing anything; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gr00t_trt.measure.program import main

if __name__ == "__main__":
    sys.exit(main())
