from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

import numpy as np

from streamlm.config import Compute, StreamConfig
from streamlm.measure.latency import measure_long_run
from streamlm.records.files import write_json

record = measure_long_run(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=np.load(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    cfg=StreamConfig(**snakemake.params.cfg),
    tokens=snakemake.params.tokens,
    compute=Compute(**snakemake.params.compute),
)
write_json(snakemake.output[0], record)
