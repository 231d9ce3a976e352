"""The parts of `crawler.py` that would be the same without a pool."""
