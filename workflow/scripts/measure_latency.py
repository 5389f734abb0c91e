from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.input_files import read_tokens
from streamlm.measure.latency import LatencyConfig, measure_latency
from streamlm.records.files import write_jsons

records = measure_latency(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    capacity=int(snakemake.wildcards.capacity),
    cases=snakemake.params.cases,
    latency=LatencyConfig(**snakemake.params.latency),
    compute=Compute(**snakemake.params.compute),
)
write_jsons(snakemake.output, records)
