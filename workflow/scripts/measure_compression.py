import sys
from pathlib import Path

import numpy as np

from streamlm.presses.prefill import ContextConfig, measure_compression
from streamlm.records import write_array, write_json
from streamlm.stats import BootstrapConfig

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

record, losses = measure_compression(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    texts=dict(zip(snakemake.params.datasets, map(np.load, snakemake.input.tokens), strict=True)),
    contexts=ContextConfig(**snakemake.params.contexts),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
    **snakemake.params.options,
    **snakemake.params.compute,
)
write_array(snakemake.output.losses, losses)
write_json(snakemake.output.record, record)
