"""The tests of test_async_handle.py that hold wherever objects live, on a Ray cluster."""

from ray_backend import BACKENDS
from test_async_handle import *
