from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.input_files import read_tokens
from streamlm.measure.perplexity import measure_perplexity, options_of
from streamlm.records.files import discard_checkpoint, write_array, write_json
from streamlm.stats import BootstrapConfig

record, losses = measure_perplexity(
    model_dir=snakemake.input.model,
    title=snakemake.params.title,
    ids=read_tokens(snakemake.input.tokens)[: snakemake.params.run["max_eval_tokens"]],
    dataset=snakemake.params.dataset,
    **options_of(snakemake.params.run),
    bootstrap=BootstrapConfig(**snakemake.params.bootstrap),
    checkpoint=snakemake.params.checkpoint,
)
write_array(snakemake.output.losses, losses)
write_json(snakemake.output.record, record)
discard_checkpoint(snakemake.params.checkpoint)
