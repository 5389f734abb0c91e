from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.input_files import read_tokens
from streamlm.measure.attention_maps import SentenceConfig, measure_attention_maps
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig

record, maps = measure_attention_maps(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    sentences=SentenceConfig(**snakemake.params.sentences),
    compute=Compute(**snakemake.params.compute),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
)
write_array(snakemake.output.maps, maps)
write_json(snakemake.output.record, record)
