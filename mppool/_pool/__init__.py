"""Lending objects, one holder at a time. Knows threads only, no other process."""
