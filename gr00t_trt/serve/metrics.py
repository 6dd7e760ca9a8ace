"""Counters and latency histograms, for `/status` and for Prometheus. Never imports torch."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping

import numpy as np

from .wire import Message

BUCKETS_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
RECENT = 1000
"""How many of the latest requests p50 and p99 are of."""

QUANTILES = (0.5, 0.99)


class _Stage:
    """Durations of one stage: a histogram of all, and the latest themselves."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS_MS) + 1)
        self.count, self.sum_ms = 0, 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)

    def add(self, ms: float) -> None:
        self.buckets[bisect_left(BUCKETS_MS, ms)] += 1
        self.count += 1
        self.sum_ms += ms
        self.recent.append(ms)

    def quantiles(self) -> list[float]:
        return [float(value) for value in np.quantile(list(self.recent), QUANTILES)]


class Metrics:
    """Counts and durations; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._stages: dict[str, _Stage] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._counts: dict[str, tuple[str, str, Callable[[], Mapping[str, int]]]] = {}

    def request(self, endpoint: str, result: str) -> None:
        """One request was answered.

        Args:
            endpoint: A name that exists; what strangers make up would grow the page without end.
            result: ``ok``, or the class of the error.
        """
        with self._lock:
            self._requests[endpoint, result] += 1

    def timings(self, timings_ms: Mapping[str, float]) -> None:
        """Durations of one request, stage -> milliseconds."""
        with self._lock:
            for stage, ms in timings_ms.items():
                self._stages.setdefault(stage, _Stage()).add(ms)

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A number that is read whenever somebody looks, such as the length of a queue."""
        self._gauges[name] = (help, read)

    def counts(self, name: str, label: str, help: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Numbers that only grow, by the value of a label, read whenever somebody looks."""
        self._counts[name] = (label, help, read)

    def snapshot(self) -> Message:
        """For a status page: uptime, answered requests by endpoint and result, stage -> count, p50 and p99."""
        with self._lock:
            requests: dict[str, dict[str, int]] = {}
            for (endpoint, result), count in sorted(self._requests.items()):
                requests.setdefault(endpoint, {})[result] = count
            stages = {}
            for name, stage in self._stages.items():
                p50, p99 = stage.quantiles()
                stages[name] = {"count": stage.count, "p50": p50, "p99": p99}
        gauges = {name: read() for name, (_, read) in self._gauges.items()}
        counts = {name: dict(read()) for name, (_, _, read) in self._counts.items()}
        uptime_s = time.monotonic() - self._began
        return {"uptime_s": uptime_s, "requests": requests, "timings_ms": stages, **gauges, **counts}

    def summary(self) -> str:
        """One sentence for the end: how many requests for actions were answered, and how fast."""
        with self._lock:
            own = {result: count for (endpoint, result), count in self._requests.items() if endpoint == "get_action"}
            total = self._stages.get("total")
        answered = own.pop("ok", 0)
        text = f"{answered} requests answered, {sum(own.values())} refused or failed"
        if total is None:
            return text
        p50, p99 = total.quantiles()
        of = f" of the latest {RECENT}" if total.count > RECENT else ""
        return f"{text}; p50 {p50:.1f} ms, p99 {p99:.1f} ms{of}"

    def prometheus(self, served_by: Mapping[str, str]) -> str:
        """The page in Prometheus' text format, version 0.0.4, times in seconds; `served_by`: submodule -> backend."""
        lines = _head("requests_total", "counter", "Requests answered.")
        with self._lock:
            for (endpoint, result), count in sorted(self._requests.items()):
                lines.append(_line("requests_total", count, endpoint=endpoint, result=result))
            help = "Time of each stage of a request, of its wait, and of all of it."
            lines += _head("stage_seconds", "histogram", help)
            for name, stage in self._stages.items():
                below = 0
                for bound, count in zip(BUCKETS_MS, stage.buckets, strict=False):
                    below += count
                    lines.append(_line("stage_seconds_bucket", below, stage=name, le=f"{bound / 1e3:g}"))
                lines.append(_line("stage_seconds_bucket", stage.count, stage=name, le="+Inf"))
                lines.append(_line("stage_seconds_sum", stage.sum_ms / 1e3, stage=name))
                lines.append(_line("stage_seconds_count", stage.count, stage=name))
            lines += _head("stage_recent_seconds", "gauge", f"Quantiles over the latest {RECENT} requests.")
            for name, stage in self._stages.items():
                for quantile, ms in zip(QUANTILES, stage.quantiles(), strict=True):
                    lines.append(_line("stage_recent_seconds", ms / 1e3, stage=name, quantile=f"{quantile:g}"))
        for name, (help, read) in self._gauges.items():
            lines += [*_head(name, "gauge", help), _line(name, read())]
        for name, (label, help, counts) in self._counts.items():
            lines += _head(f"{name}_total", "counter", help)
            lines += [_line(f"{name}_total", count, **{label: value}) for value, count in counts().items()]
        lines += _head("uptime_seconds", "gauge", "Since the server became ready.")
        lines.append(_line("uptime_seconds", time.monotonic() - self._began))
        lines += _head("served_by_info", "gauge", "What runs each submodule.")
        lines += [_line("served_by_info", 1, submodule=name, backend=text) for name, text in served_by.items()]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, help: str) -> list[str]:
    return [f"# HELP gr00t_{name} {help}", f"# TYPE gr00t_{name} {kind}"]


def _line(name: str, value: float, **labels: str) -> str:
    escaped = {key: text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, text in labels.items()}
    inner = ",".join(f'{key}="{text}"' for key, text in escaped.items())
    return f"gr00t_{name}{{{inner}}} {value!r}" if inner else f"gr00t_{name} {value!r}"
