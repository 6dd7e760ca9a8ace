"""The log output of compilers and exporters, captured unless --debug asks for it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (
    "torch_tensorrt",
    "torch_tensorrt [TensorRT Conversion Context]",
    "torch.fx",
    "torch.export",
    "torch.onnx",
    "onnxscript",
    "torch._opaque_base",
    "torch._library.opaque_object",
)
"""The second is TensorRT's own C++ log, which Torch-TensorRT hands to a Python logger of this name; the last two tell
of what Torch-TensorRT 2.14 still calls by its old name."""


class CompilerLog(logging.Handler):
    """Keeps the error lines of a build, for the message of a BackendError."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.errors) < 50:
            self.errors.append(record.getMessage())

    def first_error(self) -> str | None:
        """The first line that says something: TensorRT's own messages win over what was wrapped around them."""
        lines = [line.strip() for text in self.errors for line in text.splitlines()[:1]]
        tensorrt = [line for line in lines if "Error Code" in line or line.startswith(("IBuilder", "INetwork", "["))]
        return next(iter(tensorrt or lines), None)


@contextmanager
def compiler_log(debug: bool) -> Iterator[CompilerLog]:
    """Collect errors and, unless `debug`, silence log lines and Python warnings for the length of the scope.

    Levels, handlers and propagation of every logger touched, the root logger's handlers and the warning filters
    are afterwards what they were: Torch-TensorRT and its Debugger both reconfigure the root logger.
    """
    log = CompilerLog()
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(each, each.level, each.handlers[:], each.propagate) for each in (root, *loggers)]
    try:
        for each in loggers:
            each.addHandler(log)
            if not debug:
                each.propagate = False
                each.setLevel(logging.ERROR)
        if not debug and not root.handlers:
            # Without a handler, the first logging.debug() of the compiler would configure the root logger for good.
            root.addHandler(logging.NullHandler())
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield log
    finally:
        for each, level, handlers, propagate in before:
            each.setLevel(level)
            each.handlers[:] = handlers
            each.propagate = propagate
