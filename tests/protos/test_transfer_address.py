"""Which addresses an agent dials on its coordinator's word."""

import pytest

from protos.transfer_address import follows


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("feddp.example:8445", "feddp.example"),
        ("FEDDP.example:1", "feddp.example"),
        ("transfer.feddp.example:443", "feddp.example"),
        ("10.0.0.7:8445", "10.0.0.7"),
        ("[2001:db8::1]:8445", "2001:db8:0::1"),
        ("localhost:65535", "localhost"),
    ],
)
def test_the_same_host_or_a_name_under_it_is_dialled(address: str, host: str) -> None:
    """On any port: whoever has the name decides what is behind it."""
    assert follows(address, host)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("inside.example:22", "feddp.example"),
        ("example:443", "feddp.example"),
        ("evilfeddp.example:443", "feddp.example"),
        ("feddp.example.evil:443", "feddp.example"),
        ("10.0.0.8:443", "10.0.0.7"),
        ("127.0.0.1:443", "localhost"),
        ("1.10.0.0.7:443", "10.0.0.7"),
        ("[2001:db8::2]:8445", "2001:db8::1"),
        ("2001:db8::1:8445", "2001:db8::1"),
        ("feddp.example:0", "feddp.example"),
        ("feddp.example:65536", "feddp.example"),
        ("feddp.example:", "feddp.example"),
        ("feddp.example", "feddp.example"),
        ("unix:feddp.example:443", "feddp.example"),
        ("a..feddp.example:443", "feddp.example"),
        (".feddp.example:443", "feddp.example"),
        ("a b.feddp.example:443", "feddp.example"),
        ("a" * 300 + ".feddp.example:443", "feddp.example"),
        ("", "feddp.example"),
    ],
)
def test_nothing_else_is(address: str, host: str) -> None:
    """Another host inside the hospital, say, or what is no address at all."""
    assert not follows(address, host)
