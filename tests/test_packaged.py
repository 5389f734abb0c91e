"""The packaged model on real text: the ordering that the method is known for, not exact digits."""

from pathlib import Path

import numpy as np
import pytest
from conftest import score_by_name

from streamlm.stats import BootstrapConfig, paired_increase

pytestmark = pytest.mark.slow
DATA = Path(__file__).parent.parent / "data"
MODEL = DATA / "models" / "smollm2-135m-instruct"


@pytest.mark.parametrize("corpus", ["wikitext", "pg19"])
def test_dense_is_at_most_streaming_and_far_below_window_only(corpus):
    ids = np.load(DATA / "tokens" / MODEL.name / f"{corpus}.npy")[:2048]
    bootstrap = BootstrapConfig()
    losses = {
        method: score_by_name(
            model_dir=MODEL, ids=ids, dataset=corpus, method=method, n_sink=4, window_size=256,
            bootstrap=bootstrap,
        )[1][260:]
        for method in ("dense", "window", "streaming")
    }  # fmt: skip
    streaming = paired_increase(losses["streaming"], losses["dense"], bootstrap)
    window = paired_increase(losses["window"], losses["streaming"], bootstrap)
    assert 0 < streaming["ppl_increase_percent"] < 15
    assert window["ppl_increase_percent_interval"][0] > 40
