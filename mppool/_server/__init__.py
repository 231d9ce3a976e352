"""The manager's process: its sessions with clients, and the watchdog that finds out who has died.

What happens when

- a worker is killed while it holds an object: the pool closes and replaces the object within milliseconds
  (or resets it, with `on_reclaim="reset"`; one that the worker never called just goes back), and serves the
  next waiter;
- a worker is killed while it holds a value: that is lent again when the process has ended for sure, with all
  that it locked or had open. A worker that lives keeps it, whatever becomes of its connections;
- a worker is killed in the middle of a call: the call runs to its end, and its answer goes nowhere; the
  object is replaced at once and closed after the call. One in a process of its own is killed;
- a worker is stopped, psutil cannot tell, or the wall clock is set: the worker keeps what it holds. Only
  proof of death takes a lease away: its pid is gone, or has another start time. A closed connection is only
  a hint to look;
- a process that replaces itself by `exec`: it has ended. That closes all its connections, which no program
  does as long as it holds anything: it keeps one for that;
- a worker ends in order and still holds an object: it gives that back;
- only the main thread of a worker ends, and others run on: the worker keeps what it holds;
- a holder is on another machine or in another container (TCP, with the key): its pid means nothing here, so
  its lease ends when its last connection does;
- an object in a process of its own holds more than `max_memory`, together with what it has started: it is
  replaced when it comes home or lies idle. At `max_memory_hard` it is killed, whatever runs there: its holder
  gets `LeaseLost`, which says how much it was;
- descriptors or threads run out: the manager refuses clients that it cannot serve, which get `ManagerLost`,
  and goes on serving the others; all are served again when there is room. It takes as many descriptors as
  its hard limit allows; so do programs that objects start here, while processes of objects get the limit of
  the creating process;
- a client without the key connects, says nothing, or nonsense: its connection is dropped after 5 seconds at
  most, and there are never more than 512 of that kind;
- a caller of `apply_batch` is killed: before its batch runs it is taken out of that, and without callers
  there is no batch; later its result goes nowhere. The holder of the object is the batch, so it stays. All
  callers of a batch get the error of a call that fails as a whole, and nothing is tried again;
- the creating process is killed, or replaces itself by `exec`: the manager closes all objects and is gone
  within 2 seconds, with its socket and directory. On SIGTERM and on an orderly end it does the same, each
  object's `close` once;
- the code of an object forks, and the child comes back from it: the child ends, and never serves in its
  parent's place;
- it runs for weeks: its memory, threads, descriptors and tables stay as they were.

Objects that live in this process share its interpreter: Python code of two objects does not run at the same
time, a call cannot be stopped, and an extension that crashes takes the manager with it.
`isolation="process"` is for that.
"""
