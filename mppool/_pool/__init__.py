"""Lending: who holds which object, who waits, and where factory and hooks are called. Knows no other process.

What it guarantees

- Exclusive: an object has at most one live lease. Every request names its lease, lease ids are never reused,
  and a stale one gets `LeaseLost`, never the object that another holder has now.
- First come, first served among waiters, without polling.
- No slow work under a lock: builds and hooks run on threads of their own. A pool builds at most four objects
  at a time.

What happens when

- a waiter is killed, gives up or is interrupted: its place in the queue is gone, and no object goes to it;
- a factory fails, or takes longer than `build_timeout`: the acquire that the object was for gets
  `FactoryError` at once; the pool goes on. What it makes after its time is closed; in a process it is
  killed;
- an object that was made of an item leaves, hangs or dies: the next one in its place is of the same item;
- a value is refused by `check`: the next one is tried, and this one again after a second at the earliest;
- `check`, `reset` or `close` raises: that object is closed and replaced, and the error is logged;
- a factory or a hook is slow or hangs: only those wait who wait for that object. After 10 seconds the object
  of a hook that hangs is replaced;
- a lease ends under a running call (`max_hold`, `call_timeout`, a holder that died): the object does not
  count for `max_size` until the call ends, and is then closed;
- a call takes longer than `call_timeout`: its caller gets `CallTimeout`, and the object is replaced at once;
  one in a process of its own is killed, with all processes that it started.
"""
