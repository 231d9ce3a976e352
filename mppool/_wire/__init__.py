"""Messages between processes. Knows no object.

The channel carries pickles, so who has the key can run code at the other end. Both ends prove that they have
it (by HMAC of SHA-256, also where MD5 is forbidden) before anything is unpickled. A Unix socket lies in a
private directory (0700) with the key (0600) beside it; a pickled pool names that directory and never holds
the key but its fingerprint, so that it opens no other manager. Both ends of a Unix socket ask the kernel
which user the other is, and refuse another one. On TCP there is no such check and no encryption, and the key
has to be given by hand where its file cannot be read.

Data from 96 KiB on (arrays and other buffers of pickle 5 as well as plain pickles) does not go through the
socket on Linux: one copy brings it into a memory file that both processes map. The receiver owns what it
gets: it never changes, may be written to, and outlives lease, pool and manager. On TCP and elsewhere the
same data goes in the stream, only slower.
"""
