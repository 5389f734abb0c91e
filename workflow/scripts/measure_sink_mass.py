from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.input_files import read_tokens
from streamlm.measure.sink_mass import SinkMassConfig, measure_sink_mass
from streamlm.records.files import write_json
from streamlm.stats import BootstrapConfig

record = measure_sink_mass(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    sizes=SinkMassConfig(**snakemake.params.sizes),
    compute=Compute(**snakemake.params.compute),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
)
write_json(snakemake.output[0], record)
