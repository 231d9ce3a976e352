"""The tests of test_map.py that hold wherever objects live, on a Ray cluster."""

from ray_backend import BACKENDS
from test_map import *
