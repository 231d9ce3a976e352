"""In a worker process: the pool as its users see it, their leases, and the way to the manager.

From a user's call to the socket::

    pool          `ObjectPool`
    mapping       its `map`: threads that wait for objects, and results in order
    batches       its `apply_batch`: what is sent, and what an answer brings
    lease         a lease as its holder sees it; `values` finds that of a value again
    channel       what one manager is asked: which connection a request takes, and what is sent later
    connection    one connection, and what ends the waiting on it
    connect       how a manager is found, and who both sides are
"""
