from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.input_files import read_tokens
from streamlm.records.files import write_json
from streamlm.stats import BootstrapConfig
from streamlm.tasks.methods import ComparedCaches
from streamlm.tasks.retrieval import measure_retrieval
from streamlm.tasks.retrieval_text import RetrievalText

record = measure_retrieval(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens),
    dataset=snakemake.params.dataset,
    cfg=RetrievalText(**snakemake.params.task),
    kept=ComparedCaches(**snakemake.params.kept),
    compute=Compute(**snakemake.params.compute),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
)
write_json(snakemake.output[0], record)
