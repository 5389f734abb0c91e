from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.records.files import write_json
from streamlm.stats import BootstrapConfig
from streamlm.tasks.methods import ComparedCaches
from streamlm.tasks.stream_eval import measure_stream_eval
from streamlm.tasks.stream_text import StreamText

record = measure_stream_eval(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    cfg=StreamText(**snakemake.params.task),
    kept=ComparedCaches(**snakemake.params.kept),
    compute=Compute(**snakemake.params.compute),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
)
write_json(snakemake.output[0], record)
