"""From a queued message to the socket, and from an acknowledgement back to free memory.

``message.py``     what is being sent: ``Outgoing`` (one message), ``Frame`` (a DATA frame, or a run of them)
``completion.py``  what the application awaits: the peer acknowledged the last byte
``slab.py``        frame headers that are themselves in flight until acknowledged
``foreign.py``     memory that is not the pool's: held by its export, quarantined if the peer dies
``files.py``       file regions: page cache → pipe first, then a header that promises what the pipe holds
``ledger.py``      acknowledged offset → freed frames, in amortised constant time
``batch.py``       several messages side by side in one buffer
``framing.py``     turns, window and credit: from the streams' queues to frames
``sender.py``      control frames first; acknowledgements; what failure leaves behind
``lanes.py``       the three ways to the socket: vmsplice, file splice, copy
"""
