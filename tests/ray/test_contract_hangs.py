"""The tests of test_hangs.py that hold wherever objects live, on a Ray cluster."""

from ray_backend import BACKENDS
from test_hangs import *
