"""An error that many learn of: each gets a copy, or all of them would keep each other's frames alive."""


def again(error: BaseException) -> BaseException:
    """The same error without a traceback, to be raised where somebody learns what ended his stream.

    An error that is raised holds the frames it goes through, and with them received messages and buffers. A
    stored one would hold them for as long as its stream or connection, and a frame that leads to these
    makes that a cycle, which only the garbage collector ends.
    """
    kind = type(error)
    try:
        copy = kind.__new__(kind, *error.__reduce__()[1])  # (``__init__`` may want other arguments)
        copy.__dict__.update(error.__dict__)
        if str(copy) == str(error):
            copy.__cause__ = error.__cause__
            copy.__suppress_context__ = error.__suppress_context__
            return copy
    except Exception:  # noqa: BLE001 – the application's own class, with which it aborted the connection
        pass
    return error.with_traceback(None)
