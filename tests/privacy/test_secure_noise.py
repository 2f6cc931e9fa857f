"""The source of noise: its law, and that nobody can repeat it."""

import copy
import math
import os
import pickle

import numpy as np
import pytest
from noise_fakes import UnsafeSeededNoise
from numpy.typing import NDArray
from scipy import stats

from privacy import noise as noise_module
from privacy.noise import SecureNoise

N = 200_000
P_MIN = 1e-6
"""With fixed draws a test either always passes or never does; the seeds are the first tried."""


def test_gaussian_draws_have_the_law_of_the_normal_distribution() -> None:
    """Kolmogorov-Smirnov on the whole, chi-square on the variance, tails counted."""
    draws = UnsafeSeededNoise(1).gaussian((N // 10, 10), 2.5).ravel() / 2.5
    assert stats.kstest(draws, "norm").pvalue > P_MIN
    square = float(np.sum(draws**2))
    assert P_MIN < stats.chi2(N).cdf(square) < 1 - P_MIN
    for threshold in (3.0, 4.0):
        tail = int(np.sum(np.abs(draws) > threshold))
        assert stats.binomtest(tail, N, 2 * stats.norm.sf(threshold)).pvalue > P_MIN


def test_draws_are_independent_of_each_other() -> None:
    """No correlation at the first lags, within one call or across calls."""
    source = UnsafeSeededNoise(2)
    draws = np.concatenate([source.gaussian((1000,), 1.0) for _ in range(N // 1000)])
    for lag in (1, 2, 1000):
        correlation = float(np.mean(draws[:-lag] * draws[lag:]))
        assert abs(correlation) < 5 / N**0.5


def test_two_sources_share_nothing() -> None:
    """Each object has its own key: equal draws or correlated ones would mean a shared stream."""
    a, b = (SecureNoise().gaussian((N,), 1.0) for _ in range(2))
    assert not np.any(a == b)
    assert abs(float(np.mean(a * b))) < 6 / N**0.5


def test_bernoulli_draws_at_its_rate_and_independently() -> None:
    """Each is True with probability p; 0 and 1 are certain."""
    source = UnsafeSeededNoise(3)
    for p in (0.001, 0.1, 0.5, 0.97):
        drawn = source.bernoulli(N, p)
        assert drawn.shape == (N,)
        assert stats.binomtest(int(drawn.sum()), N, p).pvalue > P_MIN
        centred = drawn - p
        assert abs(float(np.mean(centred[:-1] * centred[1:]))) < 5 * p * (1 - p) / N**0.5
    assert source.bernoulli(N, 1.0).all()
    assert not source.bernoulli(N, 0.0).any()
    assert source.bernoulli(0, 0.5).shape == (0,)


class Extremes(SecureNoise):
    """First the least and the largest words, then ones in between."""

    def _random_bytes(self, count: int) -> bytes:
        if count == 16:
            return bytes(8) + b"\xff" * 8
        return (1 << 63).to_bytes(8, "little") * (count // 8)


def test_uniforms_are_strictly_between_zero_and_one() -> None:
    """A word of zeros is drawn again and a word of ones stays below 1: no infinite noise."""
    assert np.all(np.isfinite(Extremes().gaussian((2,), 1.0)))
    assert Extremes()._open_uniform(2).tolist() == [0.5, 1 - 2.0**-53]


def test_the_stream_is_chacha20_and_long_draws_continue_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks smaller than a draw, and a new key in mid-draw, repeat nothing."""
    monkeypatch.setattr(noise_module, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(noise_module, "_STREAM_BYTES_MAX", 256)
    words = np.frombuffer(SecureNoise()._random_bytes(64 * 1000), dtype="<u8")
    assert len(np.unique(words)) == len(words) == 8000


def test_each_value_is_the_sum_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid of a single one can be searched for; its law alone would not show that."""
    source, drawn = SecureNoise(), 0
    whole = source._random_bytes

    def counted(count: int) -> bytes:
        nonlocal drawn
        drawn += count
        return whole(count)

    monkeypatch.setattr(source, "_random_bytes", counted)
    source.gaussian((10, 10), 1.0)
    assert drawn == 4 * 8 * 100


def test_a_key_is_used_for_no_longer_than_its_counter_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream that begins again would repeat noise."""
    assert noise_module._STREAM_BYTES_MAX < 64 * 2**32
    monkeypatch.setattr(noise_module, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(noise_module, "_STREAM_BYTES_MAX", 256)
    keys: list[bytes] = []
    system = os.urandom
    monkeypatch.setattr(
        noise_module.os, "urandom", lambda count: keys.append(system(count)) or keys[-1]
    )
    SecureNoise()._random_bytes(1024)
    assert len(set(keys)) == 4


def test_nobody_is_sampled_with_more_than_the_booked_probability() -> None:
    """A rate between two multiples of 2^-53 is taken as the lower one."""

    class OnTheEdge(SecureNoise):
        def _integers(self, count: int) -> NDArray[np.uint64]:
            return np.full(count, math.floor(math.ldexp(0.1, 53)), np.uint64)

    assert not math.ldexp(0.1, 53).is_integer()
    assert not OnTheEdge().bernoulli(1, 0.1).any()


def test_the_state_cannot_be_saved_or_copied() -> None:
    """Restoring a state would repeat noise, and equal noise under two updates cancels."""
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(SecureNoise())


@pytest.mark.parametrize("same_number", [False, True])
def test_a_forked_process_draws_noise_of_its_own(
    monkeypatch: pytest.MonkeyPatch, *, same_number: bool
) -> None:
    """Parent and child would else add the same noise to two releases; also a child's child that has
    the number that its forebear had, who has ended."""
    source = SecureNoise()
    source.gaussian((1,), 1.0)
    reader, writer = os.pipe()
    number = os.getpid()
    child = os.fork()
    if child == 0:
        if same_number:
            monkeypatch.setattr(os, "getpid", lambda: number)
        os.write(writer, source._random_bytes(32))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 32) != source._random_bytes(32)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_a_deviation_that_means_nothing_is_refused(std: float) -> None:
    """Rather than noise that hides nothing."""
    with pytest.raises(ValueError, match="std"):
        SecureNoise().gaussian((1,), std)


def test_no_seed_can_be_given() -> None:
    """Production code has no way to choose the noise."""
    with pytest.raises(TypeError):
        SecureNoise(1)  # type: ignore[call-arg]
