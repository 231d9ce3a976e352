"""An object in a process of its own: the worker talks to it directly, the manager only lends.

The process (`isolation="process"`) is started the way the manager was (`PoolManager(ctx=...)`), ahead of
time for `min_size`. The manager's `initializer`, factory and hooks run in it, in its main thread. Under fork
a launcher forks it, a process that the manager forks before it has threads: so it has what the creating
program had when the manager was started, memory included, and no lock that a thread held. For 30 us after a
call the process looks for the next one before it sleeps, and gives way to whatever needs the processor. An
`apply` is the three steps acquire, call and release here. A batch is called by the manager, over a connection
that it keeps: large items and results are copied once more on the way, each way.

What happens when

- an object crashes (`os.abort()`, a segmentation fault, the kernel's killer): its holder gets `LeaseLost`,
  which names the signal, and the object is replaced; no other client sees it. One that is not held is
  replaced before it is lent;
- a factory crashes: `FactoryError`, which names the signal or the exit code;
- a call exceeds `call_timeout`: the process is killed with all its children, and its object replaced;
- the holder dies in the middle of a call: the process is killed (with `on_reclaim="reset"` after 10
  seconds);
- the lease ends under a call in another way (interrupted, expired, discarded): the call has `call_timeout`,
  10 seconds at most, to end; then the process is killed;
- the manager ends or is killed: these processes end with it, and all that they have started, but (after
  `kill -9`) for what moved to a session of its own and, unless they were forked, for one whose C code never
  lets other threads run;
- the launcher is killed: the manager ends as if it had been killed itself;
- a lease ends, in whichever way, and the process is on another machine: the manager asks it whether a call
  runs, and lends the object anew only after the answer. If there is none within 10 seconds it is replaced;
- the manager of such a process ends or is killed: the object is closed by its hook, unless a call runs, and
  the process ends, within 10 seconds;
- the code of an object forks, and the child comes back from it: the child ends, and never takes its parent's
  place.
"""
