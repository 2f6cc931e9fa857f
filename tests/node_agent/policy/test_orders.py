"""Work orders: how they are read from the wire."""

import pytest

from protos.errors import Malformed
from protos.updates import UPDATE_DTYPES
from tests.node_agent.samples import order


def test_an_order_names_the_form_of_its_update() -> None:
    """One of three forms; an order without one, as older coordinators send, means float32."""
    assert order().update_dtype == "float32"
    for dtype in UPDATE_DTYPES:
        assert order(update_dtype=dtype).update_dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "INT8", "int8 "])
def test_an_unknown_form_is_refused(dtype: str) -> None:
    """Nothing is trained for an update that could not be handed in."""
    with pytest.raises(Malformed, match="update_dtype") as caught:
        order(update_dtype=dtype)
    assert caught.value.reason == "ORDER_INVALID"


def test_where_an_order_stands_in_a_trace_is_no_term_of_it() -> None:
    """The same work, ordered again by a coordinator that traces it or does not any more."""
    said = f"00-{1:032x}-{2:016x}-01"
    assert order(traceparent=said) == order()
    assert said.encode() not in order(traceparent=said).wire
