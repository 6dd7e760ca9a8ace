#!/usr/bin/env python3
"""Compile, check and time GR00T N1.5; `--help` explains every flag."""

import sys

from gr00t_trt.run.program import main

if __name__ == "__main__":
    sys.exit(main())
