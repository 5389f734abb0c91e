import sys
from pathlib import Path

import numpy as np

from streamlm.config import Compute, StreamConfig, find_method
from streamlm.measure.checkpoint import discard_checkpoint
from streamlm.measure.perplexity import measure_perplexity
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

record, losses = measure_perplexity(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=np.load(snakemake.input.tokens)[: snakemake.params.run["max_eval_tokens"]],
    dataset=snakemake.params.dataset,
    method=find_method(snakemake.params.run["method"]),
    cfg=StreamConfig(**snakemake.params.run["cfg"]),
    positions=snakemake.params.run["positions"],
    compute=Compute(**snakemake.params.run["compute"]),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
    checkpoint=snakemake.params.checkpoint,
)
write_array(snakemake.output.losses, losses)
write_json(snakemake.output.record, record)
discard_checkpoint(snakemake.params.checkpoint)
