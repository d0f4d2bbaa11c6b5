"""From a queued message to the socket, and from an acknowledgement back to free memory.

``message.py``     what is being sent: ``Outgoing`` (one message), ``Frame`` (one DATA frame of it)
``completion.py``  what the application awaits: the peer acknowledged the last byte
``slab.py``        frame headers that are themselves in flight until acknowledged
``foreign.py``     memory that is not the pool's: held by its export, quarantined if the peer dies
``files.py``       file regions: page cache → pipe first, then a header that promises what the pipe holds
``ledger.py``      acknowledged offset → freed frames, in amortised constant time
``sender.py``      framing, the window, and the choice of lane
``lanes.py``       the three ways to the socket: vmsplice, file splice, copy
"""
