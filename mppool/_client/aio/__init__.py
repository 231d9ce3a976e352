"""A pool as an event loop sees it. Imported when it is first asked for: most workers have no asyncio.

pool          `AsyncPool`, and its leases for `async with`
mapping       `AsyncPool.map`
lease         a lease, as the tasks of a loop hold it
channel       what one loop asks of one manager: over a connection for all acquires, and others for calls
connection    one connection that the loop watches
"""
