"""An object in a process of its own."""
