"""What the floor's two ends agree on."""

import os
from typing import Final

CHUNK_BYTES: Final = 1 << 20
"""Of a message in a stream, as the product's."""

OPTIONS: Final = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", 8 << 20),
)


def chunk_sizes(message_bytes: int) -> list[int]:
    """Sizes of the messages that carry `message_bytes`."""
    whole, rest = divmod(message_bytes, CHUNK_BYTES)
    return [CHUNK_BYTES] * whole + ([rest] if rest else [])


def random_bytes(size: int) -> bytes:
    """Bytes that nothing can compress."""
    return os.urandom(size)
