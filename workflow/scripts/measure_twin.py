from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.pretrain.scores import TwinSinks, measure_twin
from streamlm.pretrain.texts import read_texts
from streamlm.records.files import read_record, write_array, write_json
from streamlm.stats import BootstrapConfig

record, losses = measure_twin(
    model_dir=snakemake.input.model,
    training=read_record(snakemake.input.training),
    texts=read_texts(snakemake.input.samples, snakemake.params.scored_bytes)[1],
    dataset=snakemake.params.dataset,
    sinks=TwinSinks(**snakemake.params.sinks),
    compute=Compute(**snakemake.params.compute),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
)
write_array(snakemake.output.losses, losses)
write_json(snakemake.output.record, record)
