"""The buckets that pools, and holders of leases that are delegated to them, count durations in."""

BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Bounds in seconds, up to the default `build_timeout`. Waits, holds and builds are compared with each other,
and have the same."""
