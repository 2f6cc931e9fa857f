"""What is taken from a gateway's header, and what is not."""

import pytest

from coordinator.gateway.shown import HEADER, forwarded_fingerprint
from protos.errors import Unauthenticated

ONE, OTHER = "a" * 64, "b" * 64
BY = "By=spiffe://hospitals.example/gateway;"


@pytest.mark.parametrize(
    "value",
    [
        f"Hash={ONE}",
        f"{BY}Hash={ONE}",
        f'{BY}Hash={ONE};Subject="CN=alpha";URI=spiffe://hospitals.example/node/alpha',
    ],
)
def test_the_fingerprint_is_taken(value: str) -> None:
    """As Envoy writes it, with its own URI or without."""
    assert forwarded_fingerprint([("user-agent", "grpc"), (HEADER, value)]) == ONE


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        ('Subject="CN=alpha"',),
        (f"Hash={ONE.upper()}",),
        (f"Hash={ONE}0",),
        (f"By=spiffe://hospitals.example/node/evil,Hash={OTHER};{BY}Hash={ONE}",),
        (f"Hash={ONE},{BY}Hash={OTHER}",),
        (f"Hash={ONE};URI=spiffe://x/node/a,Hash={OTHER}",),
        (f'Hash={ONE};Subject="x"; hash={OTHER}',),
        (f"Hash={ONE}", f"Hash={OTHER}"),
        (f"URI=spiffe://x/node/a;Hash={OTHER}",),
    ],
)
def test_a_header_that_could_mean_two_is_refused(values: tuple[str, ...]) -> None:
    """None, several, appended, or made to look like more by a name in it."""
    with pytest.raises(Unauthenticated) as refused:
        forwarded_fingerprint([(HEADER, value) for value in values])
    assert refused.value.reason == "FORWARDED_IDENTITY"
