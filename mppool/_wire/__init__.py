"""Messages between processes. Knows no object."""
