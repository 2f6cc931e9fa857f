"""The floor's clients: for each line on stdin, each downloads a model and uploads one, in the kept
floor from file to file."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from benchmarks.floor_kept import read_pieces, write_pieces, write_update
from benchmarks.floor_messages import CHUNK_BYTES, OPTIONS, chunk_sizes, random_bytes
from certs.credentials import channel_credentials

SERVICE = "/floor.Floor"
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


def main() -> None:
    """Prints a line when all are connected and after each round."""
    folder, port, message_bytes, clients = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    keeps = sys.argv[5] if len(sys.argv) > 5 else ""
    credentials = channel_credentials(
        (folder / "bundle.pem").read_bytes(),
        (folder / "client.key").read_bytes(),
        (folder / "client.crt").read_bytes(),
    )
    channels = [
        grpc.secure_channel(f"localhost:{port}", credentials, options=(*OPTIONS, OWN_CONNECTION))
        for _ in range(clients)
    ]
    rounds = [
        _kept_round_of(channel, message_bytes, folder / keeps)
        if keeps
        else _round_of(channel, message_bytes)
        for channel in channels
    ]
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(_connect, channels))
        print("ready", flush=True)
        for _ in sys.stdin:
            list(pool.map(lambda one: one(), rounds))
            print("done", flush=True)


def _connect(channel: grpc.Channel) -> None:
    grpc.channel_ready_future(channel).result(timeout=60)


def _round_of(channel: grpc.Channel, message_bytes: int) -> Callable[[], None]:
    exchange: Any = channel.unary_unary(f"{SERVICE}/Exchange")
    download: Any = channel.unary_stream(f"{SERVICE}/Download")
    upload: Any = channel.stream_unary(f"{SERVICE}/Upload")
    chunk, sizes = random_bytes(min(CHUNK_BYTES, message_bytes)), chunk_sizes(message_bytes)

    def in_one_message() -> None:
        assert len(exchange(b"")) == message_bytes
        exchange(chunk)

    def in_streams() -> None:
        assert sum(len(data) for data in download(b"")) == message_bytes
        pieces = (chunk if size == len(chunk) else chunk[:size] for size in sizes)
        assert int(upload(pieces)) == message_bytes

    return in_one_message if len(sizes) == 1 else in_streams


def _kept_round_of(channel: grpc.Channel, message_bytes: int, kept: Path) -> Callable[[], None]:
    download: Any = channel.unary_stream(f"{SERVICE}/Download")
    upload: Any = channel.stream_unary(f"{SERVICE}/Upload")
    model, update = kept.with_suffix(".model"), kept.with_suffix(".update")

    def from_file_to_file() -> None:
        assert write_pieces(model, download(b""), synced=False) == message_bytes
        write_update(update, message_bytes)
        assert int(upload(read_pieces(update))) == message_bytes

    return from_file_to_file


if __name__ == "__main__":
    main()
