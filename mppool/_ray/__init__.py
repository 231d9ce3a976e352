"""Pools on a Ray cluster: one wire, also between machines.

Ray does what it is good at: it places processes, starts them anew, finds them by their names and knows which
nodes are dead. What passes between its actors are addresses, a key and recipes; leases and calls go over
sockets of our own, as on one machine::

    a driver, task or actor -- TCP --> control   the manager of one pool, in an actor: who holds and who waits
                            -- TCP --> host      an object, in the main thread of an actor's process
    host    -- TCP, three of them ---> control   orders, what is asked while a call runs, and a lifeline
    control -- Ray ------------------> watch     one on each node that has holders or objects: psutil's word

Modules::

    placement   where objects are to live
    cluster     what is asked of Ray
    channel     in a client: the way to the control of a pool, also of the one that follows it
    control     the actor with the pool
    hosts       the objects' processes, as the control sees them
    host        the actor with an object
    nodes       what the control learns of processes on other nodes
    watch       the actor of a node that tells
    figures     what objects take of their nodes
"""
