"""Reference, build, check, time: one harness for every program that measures."""
