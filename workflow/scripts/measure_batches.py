from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.input_files import read_tokens
from streamlm.presses.batches import BatchConfig, measure_batches
from streamlm.records.files import write_json

record = measure_batches(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    n_sink=snakemake.params.n_sink,
    presses=snakemake.params.presses,
    sizes=snakemake.params.sizes,
    batch=BatchConfig(**snakemake.params.batch),
    compute=Compute(**snakemake.params.compute),
)
write_json(snakemake.output[0], record)
