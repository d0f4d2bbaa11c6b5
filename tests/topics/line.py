"""A client of topics whose connections the test breaks."""

import zcserver


class Line:
    """A client of a server of topics, whose connections the test breaks."""

    def __init__(self, served, make_context):
        self.served = served
        self.retries = []
        self.client = zcserver.Client(f"zc://127.0.0.1:{served.server.port}/", context=make_context())

    async def __aenter__(self):
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error):
        await self.client.__aexit__(*error)

    def break_at_the_server(self):
        for connection in list(self.served.server.connections):
            if self.serves(connection):
                connection.abort()

    def serves(self, connection):
        """Whether it is the server's end of this client's connection."""
        return connection.name.endswith(f":{self.client.connection.engine._sock.getsockname()[1]}")
