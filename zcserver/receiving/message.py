"""What the application gets of a message that was received whole."""


class Message:
    """One received message. ``data`` is a memoryview of its bytes, in one piece.

    The memory is the application's for as long as any view or array of it lives, and goes back by itself
    after that; holding many messages holds receive memory. Messages of 16 to 340 KiB that came in together
    share a piece of up to 1 MiB, which is held by any of them: copy out what you keep for long, by
    ``bytes(message)``.
    """

    __slots__ = ("data",)

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __repr__(self) -> str:
        return f"<Message of {len(self.data)} bytes>"
