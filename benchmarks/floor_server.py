"""The floor's server: sends and receives bytes by gRPC over mTLS and does nothing with them, or no
more than to keep them."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc

from benchmarks.floor_kept import KeptModel
from benchmarks.floor_messages import CHUNK_BYTES, OPTIONS, chunk_sizes, random_bytes
from certs.credentials import server_credentials

THREADS: Final = 64
"""Of the sync server: one for each client."""


def main() -> None:
    """Serve until killed; prints the port, and as "kept" answers each line with an average."""
    kind, folder, message_bytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    credentials = server_credentials(
        (folder / "server.crt").read_bytes(),
        (folder / "server.key").read_bytes(),
        (folder / "bundle.pem").read_bytes(),
    )
    if kind == "aio":
        asyncio.run(_serve_aio(credentials, message_bytes))
    else:
        kept = KeptModel(folder, message_bytes) if kind == "kept" else None
        _serve_sync(credentials, message_bytes, kept)


async def _serve_aio(credentials: grpc.ServerCredentials, message_bytes: int) -> None:
    chunk, sizes = random_bytes(min(CHUNK_BYTES, message_bytes)), chunk_sizes(message_bytes)

    async def exchange(request: bytes, _context: object) -> bytes:
        return b"" if request else chunk

    async def download(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        for size in sizes:
            yield chunk if size == len(chunk) else chunk[:size]

    async def upload(requests: AsyncIterator[bytes], _context: object) -> bytes:
        got = 0
        async for data in requests:
            got += len(data)
        return str(got).encode()

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_handlers(exchange, download, upload),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def _serve_sync(
    credentials: grpc.ServerCredentials, message_bytes: int, kept: KeptModel | None
) -> None:
    chunk, sizes = random_bytes(min(CHUNK_BYTES, message_bytes)), chunk_sizes(message_bytes)

    def exchange(request: bytes, _context: object) -> bytes:
        return b"" if request else chunk

    def download(_request: bytes, _context: object) -> Iterator[bytes]:
        if kept is not None:
            yield from kept.pieces()
            return
        for size in sizes:
            yield chunk if size == len(chunk) else chunk[:size]

    def upload(requests: Iterator[bytes], _context: object) -> bytes:
        got = kept.keep(requests) if kept is not None else sum(len(data) for data in requests)
        return str(got).encode()

    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    server.add_generic_rpc_handlers((_handlers(exchange, download, upload),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    print(port, flush=True)
    if kept is not None:
        for _ in sys.stdin:
            kept.average()
            print("averaged", flush=True)
    server.wait_for_termination()


def _handlers(exchange: Any, download: Any, upload: Any) -> Any:
    return grpc.method_handlers_generic_handler(
        "floor.Floor",
        {
            "Exchange": grpc.unary_unary_rpc_method_handler(exchange),
            "Download": grpc.unary_stream_rpc_method_handler(download),
            "Upload": grpc.stream_unary_rpc_method_handler(upload),
        },
    )


if __name__ == "__main__":
    main()
