from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.input_files import read_tokens
from streamlm.presses.decoding import DecodeConfig, measure_decoding
from streamlm.presses.setting import Setting
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig

setting = Setting(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    texts=dict(zip(snakemake.params.datasets, map(read_tokens, snakemake.input.tokens), strict=True)),
    compute=Compute(**snakemake.params.compute),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
)
decode = DecodeConfig(**snakemake.params.decode)
record, scores = measure_decoding(setting, n_sink=snakemake.params.n_sink, decode=decode)
write_array(snakemake.output.scores, scores)
write_json(snakemake.output.record, record)
