from pathlib import Path

import numpy as np

from benchmarks.floor import kept_floor_s
from benchmarks.floor_kept import KeptModel, read_pieces, write_pieces, write_update
from benchmarks.floor_messages import CHUNK_BYTES
from benchmarks.fold_floor import TILE_VALUES


def test_average_is_the_model_with_the_mean_of_what_was_kept(tmp_path: Path) -> None:
    values = TILE_VALUES + 3
    first, second = (np.full(values, value, np.float32) for value in (1, 3))
    model = KeptModel(tmp_path, 4 * values)
    assert model.keep([first.tobytes()[:1000], first.tobytes()[1000:]]) == 4 * values
    model.keep([second.tobytes()])
    model.average()
    found = np.frombuffer(b"".join(model.pieces()), np.float32)
    assert found.tolist() == [2.0] * values
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_update_is_as_large_as_its_model(tmp_path: Path) -> None:
    write_update(tmp_path / "update", CHUNK_BYTES + 5)
    assert [len(one) for one in read_pieces(tmp_path / "update")] == [CHUNK_BYTES, 5]


def test_pieces_replace_what_the_file_held(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(b"longer than what comes")
    assert write_pieces(path, [b"ab", b"c"], synced=True) == 3
    assert path.read_bytes() == b"abc"


def test_round_of_the_kept_floor_goes_over_tls_between_processes(tmp_path: Path) -> None:
    assert kept_floor_s(tmp_path, nodes=2, message_bytes=2 * CHUNK_BYTES + 4, rounds=1) > 0
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("client-*")}
    assert set(sizes.values()) == {2 * CHUNK_BYTES + 4}
    assert len(sizes) == 4
