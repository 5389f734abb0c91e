from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute, StreamConfig
from streamlm.input_files import read_tokens
from streamlm.measure.latency import measure_long_run
from streamlm.records.files import write_json

record = measure_long_run(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    cfg=StreamConfig(**snakemake.params.cfg),
    tokens=snakemake.params.tokens,
    compute=Compute(**snakemake.params.compute),
)
write_json(snakemake.output[0], record)
