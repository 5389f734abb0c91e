import numpy as np
import pytest

from streamlm.stats import (
    BootstrapConfig,
    Correction,
    Interval,
    after_token,
    block_bootstrap,
    describe_losses,
    paired_increase,
    sample_difference,
    trend,
)

CFG = BootstrapConfig(resamples=1000)


def autoregressive(n, seed, carry=0.97):
    noise = np.random.default_rng(seed).normal(size=n)
    values = np.empty(n)
    values[0] = noise[0]
    for i in range(1, n):
        values[i] = carry * values[i - 1] + noise[i]
    return values


def test_interval_covers_the_true_mean_of_dependent_values():
    covered = [
        (found := block_bootstrap(autoregressive(4096, seed), CFG)).low <= 0 <= found.high
        for seed in range(100)
    ]
    assert np.mean(covered) > 0.8  # independent resampling covers about 20 % here


def test_blocks_widen_the_interval_of_dependent_values_only():
    def width(values, block):
        found = block_bootstrap(values, BootstrapConfig(block=block, resamples=1000))
        return found.high - found.low

    assert width(autoregressive(4096, 0), 128) > 3 * width(autoregressive(4096, 0), 1)
    independent = np.random.default_rng(0).normal(size=4096)
    assert width(independent, 128) == pytest.approx(width(independent, 1), rel=0.25)


@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_short_sequences_have_an_interval_around_their_mean(n):
    found = block_bootstrap(np.arange(n), CFG)
    assert found.low <= found.mean == np.mean(np.arange(n)) <= found.high


@pytest.mark.parametrize("n", [130, 160, 256])
def test_interval_of_few_blocks_holds_the_mean(n):
    """Where the ends of a short sequence stand in few blocks, it can lie beside it."""
    for seed in range(50):
        found = block_bootstrap(autoregressive(n, seed), CFG)
        assert found.low < found.mean < found.high


def test_resample_is_as_long_as_the_sequence():
    """Whole blocks would stand for more values than there are: of 5, in blocks of 2, for 6."""
    found = block_bootstrap(np.array([0, 0, 5, 0, 0]), CFG)
    assert (found.low, found.mean, found.high) == (0, 1, 3)


def test_same_seed_gives_the_same_interval():
    values = autoregressive(500, 1)
    assert block_bootstrap(values, CFG) == block_bootstrap(values, CFG)


def test_perplexity_is_the_exponential_of_the_mean_loss():
    assert describe_losses(np.full(300, np.log(7)), CFG)["perplexity"] == pytest.approx(7)


def test_tail_starts_with_the_query_that_first_misses_a_key():
    tail = after_token(np.array([1.0, 1.0, 2.0, 2.0]), 2, CFG)
    assert (tail["first_token"], tail["scored"], tail["nll_nats"]) == (2, 2, 2.0)
    assert after_token(np.ones(4), 4, CFG) is None


def test_pairing_removes_what_both_share():
    shared = autoregressive(4096, 2) + 3
    found = paired_increase(shared + 0.01, shared, CFG)
    low, high = found["ppl_increase_percent_interval"]
    assert low == pytest.approx(high) == pytest.approx(100 * (np.exp(0.01) - 1))


def test_correction_counts_by_the_share_of_the_tokens_it_is_for():
    correction = Correction(6, Interval(0.2, 0.1, 0.4))
    assert correction.over(6, 10) == correction.difference
    assert correction.over(0, 6) == Interval(0, 0, 0)
    assert correction.over(2, 10).mean == pytest.approx(0.1)
    losses = np.ones(10)
    assert describe_losses(losses, CFG, correction=correction)["nll_nats"] == pytest.approx(1 + 0.2 * 4 / 10)
    assert after_token(losses, 8, CFG, correction)["nll_nats"] == pytest.approx(1.2)
    paired = paired_increase(losses, losses, CFG, correction=correction)
    assert paired["nll_difference_interval"] == pytest.approx([0.04, 0.16])


def test_errors_of_a_sum_add_like_independent_ones():
    assert Interval(1, 0.7, 1.3) + Interval(2, 1.6, 2.4) == Interval(3, 2.5, 3.5)


def test_interval_of_a_sample_covers_the_mean_it_was_drawn_from():
    covered = 0
    for seed in range(200):
        values = autoregressive(4096, seed, carry=0.9)
        drawn = values[np.arange(32) * 128 + np.random.default_rng(seed).integers(0, 128, 32)]
        found = sample_difference(drawn, 128, CFG)
        covered += found.low <= values.mean() <= found.high
    assert covered / 200 > 0.88


def test_trend_finds_a_slope_and_is_sure_of_it_as_far_as_the_noise_lets():
    places, noise = np.arange(60) / 10, np.random.default_rng(0).normal(size=60)
    found = trend(2 * places + noise, places)
    assert found["low"] < 2 < found["high"]
    assert 0 < trend(2 * places + 0.01 * noise, places)["low"] < 2.01
