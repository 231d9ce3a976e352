"""An object used from another process: the handle at one end, the calls at the other.

- Results that pickle come as copies, others as further handles that live as long as the lease.
- Items of iterators are fetched ahead, in batches of 1, 2, 4 and so on up to 512, or as many as come within
  5 ms. - An error that does not pickle, or does not unpickle in the worker, is made again of its type, its
  arguments and what pickles of its attributes; when that fails, too, it is a `RemoteError` with its text and
  traceback.
"""
