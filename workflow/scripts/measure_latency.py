from streamlm.experiment import warm_start

warm_start.join()

import sys
from pathlib import Path

import numpy as np

from streamlm.config import Compute
from streamlm.measure.latency import LatencyConfig, measure_latency
from streamlm.records.files import write_jsons

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

records = measure_latency(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=np.load(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    capacity=int(snakemake.wildcards.capacity),
    cases=snakemake.params.cases,
    latency=LatencyConfig(**snakemake.params.latency),
    compute=Compute(**snakemake.params.compute),
)
write_jsons(snakemake.output, records)
