"""What is asked of the operating system."""

import os

PORTABLE = bool(os.environ.get("MPPOOL_PORTABLE"))
"""Whether to do without what only Linux has, as a platform does that lacks it: for tests."""
