"""Twins of two seeds each, so small that they are trained in a second."""

import numpy as np
from test_figures import BOOTSTRAP

from streamlm.config import TWINS, Compute
from streamlm.pretrain.scores import TwinSinks, measure_twin
from streamlm.pretrain.training import Training, train_twin
from streamlm.pretrain.twins import TwinShape, write_twin
from streamlm.records.fields import check_record
from streamlm.records.files import write_array, write_json
from streamlm.records.paper import TrainingRecord

SHAPE = TwinShape(layers=2, hidden=16, heads=2, context_tokens=40)
TRAINING = Training(steps=6, batch=3, learning_rate=0.01)
TEXT = np.random.default_rng(0).integers(97, 110, 3000).astype(np.uint8)
HELD_OUT = [np.random.default_rng(seed).integers(97, 110, 150).astype(np.uint8) for seed in (1, 2)]
SINKS = TwinSinks(n_sinks=[0, 1, 3], capacity=12)
ONE_THREAD = Compute(torch_threads=1)
DATASET = "Letters & more"


def train_twins(results):
    """Train and measure all twins into a results folder; return the paths of records, by twin and seed."""
    paths = {}
    for twin in TWINS:
        for seed in (0, 1):
            name = f"{twin}_seed{seed}"
            record, model = train_twin(
                twin=twin, shape=SHAPE, cfg=TRAINING, text=TEXT, dataset=DATASET, seed=seed,
                compute=ONE_THREAD,
            )  # fmt: skip
            check_record(record, TrainingRecord, name)
            write_twin(model, results / "twins" / name)
            found, losses = measure_twin(
                model_dir=results / "twins" / name, training=record, texts=HELD_OUT, dataset=DATASET,
                sinks=SINKS, compute=ONE_THREAD, bootstrap=BOOTSTRAP,
            )  # fmt: skip
            path = paths[twin, seed] = results / "paper" / "twins" / f"{name}.json"
            write_json(path, found)
            write_array(path.with_suffix(".npy"), losses)
    return paths
