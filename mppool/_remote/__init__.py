"""An object used from another process: the handle at one end, the calls at the other."""
