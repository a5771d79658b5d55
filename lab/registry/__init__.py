"""The registry: where every endpoint of the lab is, and which path carries each connection.

`core` is the registry without input and output, `tables` what it knows, `decision` where and by which heap,
`connections` the life of a connection, `link` the connection to each guest's port.

Life of a connection: an end is announced; when the other end's announcement meets it (the same pair of
endpoints), the fast path and the heap are chosen, the broker leases a buffer, and both agents get the offer.
An end is gone when its agent says so, when its guest is dead, or when an agent that returned settles without
it. When both ends are gone the lease is free and the connection becomes history.
"""
