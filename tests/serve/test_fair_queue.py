"""Turns, bounds, and who has to go."""

from __future__ import annotations

import threading
import time

from gr00t_trt.serve.fair_queue import FairQueue


def test_clients_take_turns_and_keep_their_own_order() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for entry in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert queue.put(entry[0], entry) == []
    assert [queue.take(0) for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", None]


def test_a_flood_pushes_out_itself() -> None:
    queue: FairQueue[str] = FairQueue(3)
    for entry in ("a1", "a2", "a3"):
        assert queue.put("a", entry) == []
    assert queue.put("a", "a4") == ["a4"]
    assert queue.put("b", "b1") == ["a3"]
    assert queue.put("b", "b2") == ["b2"]  # as long as the other one now, and the later
    assert [queue.take(0) for _ in range(4)] == ["a1", "b1", "a2", None]


def test_entries_alike_are_taken_one_per_client_and_none_overtakes_its_own() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for client, entry in (("a", "x1"), ("a", "y1"), ("b", "y2"), ("c", "x2"), ("c", "x3")):
        queue.put(client, entry)
    assert queue.take(0) == "x1"
    assert queue.take_like(lambda entry: entry.startswith("x"), range(6)) == ["x2", "x3"]
    assert len(queue) == 2


def test_alike_entries_are_waited_for_as_long_as_said() -> None:
    queue: FairQueue[str] = FairQueue(10)
    timer = threading.Timer(0.05, lambda: queue.put("b", "x2"))
    timer.start()
    began = time.monotonic()
    assert queue.take_like(lambda entry: True, [0, 1], 5.0) == ["x2"]
    assert time.monotonic() - began < 4
    timer.join()
    assert queue.take_like(lambda entry: True, [0, 1], 0.02) == []


def test_whole_buckets_are_taken_in_turn_and_nobody_is_overtaken_by_a_request_of_his_own() -> None:
    queue: FairQueue[str] = FairQueue(20)
    for client, entry in (("a", "x1"), ("a", "x2"), ("b", "y1"), ("b", "x3"), ("c", "x4"), ("c", "x5"), ("d", "x6")):
        queue.put(client, entry)
    x = lambda entry: entry.startswith("x")  # noqa: E731
    assert queue.take_like(x, [0, 1, 3, 7]) == ["x1", "x4", "x6"]  # five fit, x3 stands behind y1
    assert queue.take_like(x, [3, 7]) == []
    assert queue.take_like(x, [0, 2]) == ["x2", "x5"]
    assert [queue.take(0) for _ in range(3)] == ["y1", "x3", None]


def test_after_the_end_nothing_is_accepted() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.put("a", "a1")
    queue.put("b", "b1")
    assert queue.close() == ["a1", "b1"]
    assert queue.put("a", "a2") == ["a2"]
    assert queue.take(5.0) is None
    assert len(queue) == 0


def test_turns_and_room_are_counted_in_samples() -> None:
    queue: FairQueue[str] = FairQueue(12)
    assert queue.put("batches", "b4", 4) == []
    for number in range(6):
        assert queue.put("single", f"s{number}") == []
    assert len(queue) == 10
    # Four turns of the one that asks for four samples at once.
    assert [queue.take(0) for _ in range(4)] == ["s0", "s1", "s2", "b4"]
    assert queue.put("batches", "b8", 8) == []
    assert queue.put("batches", "b2", 2) == ["b2"]
    assert queue.put("other", "o3", 3) == ["b8"]
    assert len(queue) == 6
    assert queue.put("single", "s6") == []


def test_an_entry_of_more_samples_than_the_limit_fits_alone() -> None:
    queue: FairQueue[str] = FairQueue(4)
    assert queue.put("a", "a8", 8) == []
    assert queue.put("b", "b1") == ["a8"]
    assert queue.take(0) == "b1"
    assert queue.put("a", "a8", 8) == []
    assert queue.take(0) == "a8"


def test_what_nobody_waits_for_is_taken_out() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for client, entry in (("a", "x1"), ("a", "y1"), ("b", "y2"), ("c", "x2")):
        queue.put(client, entry, 2)
    assert queue.sweep(lambda entry: entry.startswith("y")) == ["y1", "y2"]
    assert len(queue) == 4
    assert [queue.take(0) for _ in range(3)] == ["x1", "x2", None]


def test_who_comes_again_is_not_behind_a_flood_and_new_names_gain_nothing() -> None:
    queue: FairQueue[str] = FairQueue(100)
    queue.put("good", "g1")
    for number in range(4):
        queue.put("flood", f"f{number}")
    assert [queue.take(0) for _ in range(2)] == ["g1", "f0"]
    queue.put("good", "g2")  # while f0 is being answered
    assert queue.take(0) == "g2"
    for number in range(4):
        queue.put(f"new {number}", f"n{number}")
    queue.put("good", "g3")
    assert [queue.take(0) for _ in range(3)] == ["f1", "g3", "n0"]
    for number in range(10_000):
        queue.put(f"name {number}", "x")
        queue.take(0)
    assert len(queue._turns) < 5000
