"""An object used from another process: the handle at one end, the calls at the other.

From a handle to the object and back::

    inspection    what is offered of an object, read from its type
    interface     that, as it is sent to a worker
    handle        what stands for the object in a worker; `async_handle`: in an event loop of it
    family        what is common to both, and to all handles of one lease
    steps         what is asked of the object, apart from how the answer is waited for
    arguments     what a plain pickle does not do: handles in them, and functions that go by value
    opcodes       what a call can ask for, and what it answers
    calls         performing a call, where the object lives
    results       which results are copied, and which stay
    batches       one call for many callers
    items         those of an iterator, taken in batches where it lives
    iteration     and fetched ahead of their use
    errors        an error on its way, both ways
    references    pickles with references in them; `forms`: what only looks as if it did not pickle

- Data comes as copies. What belongs to the object stays with it, and comes as a further handle that lives
  as long as the lease: a result that does not pickle or cannot be rebuilt, one of a type of `keep`, and one
  whose pickle reaches the object or anything else that stays, such as a part that refers back, or a bound
  method. Containers and named tuples are copied and judged element by element. `apply` brings data only.
- Handles in arguments, wherever in them, go back as what they stand for. Those of other leases do so where
  both objects live in the manager's process: both leases are entered, in the order of their ids.
- Functions and classes that pickle refuses, those of a `__main__` without a file, and those that the other
  side could not find go by value, where cloudpickle is installed.
- Named tuples of a class made at run time come as their fields, a `memoryview` as bytes.
- Items of generators, plain iterators, files and database cursors are fetched ahead, in batches of 1, 2, 4
  and so on up to 512, or as many as come within 5 ms; any other call of the lease sets that back to one item.
  Where an iterator falls silent within a batch, what it has given is sent, and the call goes on until the
  next item is there: meanwhile other calls of the lease wait, and the end of the lease costs the object.
  Methods of files and cursors that read on go on with what is ahead. An iterator that has methods or
  attributes of its own is asked for each item.
- A handle of an object that compares by value, other than a number, is hashable where strings hash as they do
  where the object lives: under the start method `fork`, or with `PYTHONHASHSEED`.
- An error is made again of its type, arguments, attributes and what builtin types and `__slots__` keep; its
  `__init__` is not called. What does not travel of these is told by its repr. A type that the worker does not
  know comes as its nearest base there, with a note of what it was; where that is `Exception` alone, as
  `RemoteError`. `__cause__` is the remote traceback, and the cause of that a copy of the error's own.
  Errors of a class that went to the object by value are of that class again.
- The class of a handle has what tools look for without evaluating it: the names of attributes, of the type
  and in the object's `__dict__` when it was first lent, what `match` asks, and, where the class of the object
  is known, the documentation and signatures of its methods.
"""
