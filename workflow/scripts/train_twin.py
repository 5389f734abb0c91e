from streamlm.experiment import warm_start

warm_start.begin(log=snakemake.log[0])

from streamlm.config import Compute
from streamlm.pretrain.texts import read_texts
from streamlm.pretrain.training import Training, train_twin
from streamlm.pretrain.twins import TwinShape, write_twin
from streamlm.records.files import discard_checkpoint, write_json

record, model = train_twin(
    twin=snakemake.params.twin,
    shape=TwinShape(**snakemake.params.shape),
    cfg=Training(**snakemake.params.training),
    text=read_texts(snakemake.input.samples, snakemake.params.scored_bytes)[0],
    dataset=snakemake.params.dataset,
    seed=snakemake.params.seed,
    compute=Compute(**snakemake.params.compute),
    checkpoint=snakemake.params.checkpoint,
)
write_twin(model, snakemake.output.model)
write_json(snakemake.output.record, record)
discard_checkpoint(snakemake.params.checkpoint)
