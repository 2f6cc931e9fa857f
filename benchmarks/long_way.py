"""A way that takes time: passes TCP connections on, each byte so many seconds late.

It delays bytes, not packets: HTTP/2's windows, which a gateway sets, see the whole round trip;
TCP's own, which the two kernels grow by themselves, do not.
"""

import asyncio
import threading
from contextlib import suppress
from typing import Final, Self

READ_BYTES: Final = 256 << 10
PIECES_MAX: Final = 256
"""Under way in one direction of a connection: 64 MiB, far above what any window lets out."""


class LongWay:
    """Listens on loopback and passes on to `target`, from the `with` on.

    Args:
        target: "host:port".
        delay_s: of each direction.

    Attributes:
        address: "host:port" to dial instead.
    """

    def __init__(self, target: str, delay_s: float) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._delay_s = delay_s
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._listening = threading.Event()
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _run(self) -> None:
        """Until the end of the block; what is being carried then is cancelled."""
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=READ_BYTES)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        self._listening.set()
        await self._over.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target, limit=READ_BYTES)
        # Cancelled at the end of the block, which is nobody's fault to print.
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way = asyncio.Queue[tuple[float, bytes]](PIECES_MAX)
        reading = asyncio.create_task(self._read(reader, under_way))
        try:
            while True:
                due_s, data = await under_way.get()
                if (wait_s := due_s - self._loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if not data:
                    return
                writer.write(data)
                await writer.drain()
        finally:
            reading.cancel()
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(READ_BYTES)
            except OSError:
                data = b""
            await under_way.put((self._loop.time() + self._delay_s, data))
