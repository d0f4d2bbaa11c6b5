"""From the socket into memory of our own, and when to say so.

``memory.py``    where payload lands: pooled pages that go back when the last view of them is gone
``inbox.py``     one stream's received messages, its sink, and the credit that backs them
``message.py``   what the application gets of a message
``receiver.py``  reading: header and payload go straight to where they belong; when to acknowledge
"""
