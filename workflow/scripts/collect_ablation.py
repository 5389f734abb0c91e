import sys
from pathlib import Path

from streamlm.records.files import write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.main import collect_ablation

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

ablation = collect_ablation(
    snakemake.params.kind,
    dense=snakemake.input.dense,
    runs=snakemake.input.runs,
    cfg=BootstrapConfig(**snakemake.params.bootstrap),
)
write_json(snakemake.output[0], ablation)
