"""In a worker process: the pool as its users see it, their leases, and the way to the manager."""
