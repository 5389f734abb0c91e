import numpy as np
import pytest

from streamlm.stats import BootstrapConfig, after_token, block_bootstrap, describe_losses, paired_increase

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
    assert np.mean(covered) > 0.85  # independent resampling covers about 20 % here


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
