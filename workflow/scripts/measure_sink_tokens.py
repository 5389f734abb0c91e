from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute, StreamConfig
from streamlm.input_files import read_tokens
from streamlm.measure.sink_tokens import measure_sink_tokens
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig

record, losses = measure_sink_tokens(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens)[: snakemake.params.n_tokens],
    dataset=snakemake.params.dataset,
    cfg=StreamConfig(**snakemake.params.cfg),
    compute=Compute(**snakemake.params.compute),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
)
write_array(snakemake.output.losses, losses)
write_json(snakemake.output.record, record)
