"""What counts as a release."""

import math
from typing import Any

import pytest

from privacy.releases import Release
from protos.errors import Malformed

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "fields",
    [
        ("laplacian", 1.0, 1.0, 1),
        ("", 1.0, 1.0, 1),
        (None, 1.0, 1.0, 1),
        ("gaussian", None, 1.0, 1),
        ("gaussian", 0.0, 1.0, 1),
        ("gaussian", -1.0, 1.0, 1),
        ("gaussian", NAN, 1.0, 1),
        ("gaussian", INF, 1.0, 1),
        ("gaussian", True, 1.0, 1),
        ("gaussian", "1.0", 1.0, 1),
        ("gaussian", 10**400, 1.0, 1),
        ("gaussian", 1.0, 0.5, 1),
        ("gaussian", 1.0, 1.0, 0),
        ("gaussian", 1.0, 1.0, -1),
        ("gaussian", 1.0, 1.0, 1.0),
        ("gaussian", 1.0, 1.0, True),
        ("gaussian", 1.0, 1.0, 2**32),
        ("poisson_gaussian", 1.0, 0.0, 1),
        ("poisson_gaussian", 1.0, 1.1, 1),
        ("poisson_gaussian", 1.0, NAN, 1),
        ("poisson_gaussian", 1.0, -0.1, 1),
        ("laplace", None, 1.0, 1),
        ("laplace", 0.0, 1.0, 1),
        ("laplace", NAN, 1.0, 1),
        ("laplace", INF, 1.0, 1),
        ("laplace", 1.0, 0.5, 1),
        ("laplace", 1.0, 1.0, 0),
        ("discrete_gaussian", -1.0, 1.0, 1),
        ("discrete_gaussian", INF, 1.0, 1),
        ("discrete_gaussian", 1.0, 0.1, 1),
        ("exponential", None, 1.0, 1),
        ("exponential", 0, 1.0, 1),
        ("exponential", NAN, 1.0, 1),
        ("exponential", 1.0, NAN, 1),
        ("no_data", 1.0, 1.0, 0),
        ("no_data", None, 0.5, 0),
        ("none", 1.0, 1.0, 1),
        ("none", None, 1.0, 0),
    ],
)
def test_nonsense_is_no_release(fields: tuple[Any, ...]) -> None:
    """A parameter that no accountant could count is refused before anything is booked."""
    with pytest.raises(Malformed) as caught:
        Release(*fields)
    assert caught.value.reason == "RELEASE_INVALID"


def test_whole_numbers_and_floats_spell_the_same_release() -> None:
    """1 and 1.0 are one noise multiplier, with one hash and one type."""
    release = Release("gaussian", 1, 1, 3)
    assert release == Release("gaussian", 1.0, 1.0, 3)
    assert type(release.noise_multiplier) is float
    assert type(release.sample_rate) is float


def test_no_data_may_have_no_steps() -> None:
    """An attempt that reads no record trains no step."""
    assert Release("no_data", None, 1.0, 0).steps == 0
