"""The version of this code: what the package's metadata says, and what both ends of a connection compare."""

# A constant, because a worker process that asks the installed metadata takes 10 to 30 ms for the answer.
__version__ = "0.2.0"
