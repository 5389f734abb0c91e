import sys
from pathlib import Path

from streamlm.records.files import write_jsons
from streamlm.stats import BootstrapConfig
from streamlm.summaries.main import read_run
from streamlm.summaries.presses import collect_comparison

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

records = collect_comparison(
    dict(zip(snakemake.params.labels, map(read_run, snakemake.input.runs), strict=True)),
    decoding=read_run(snakemake.input.decoding),
    dataset=snakemake.params.dataset,
    capacity=snakemake.params.capacity,
    cfg=BootstrapConfig(**snakemake.params.bootstrap),
)
write_jsons(snakemake.output, records)
