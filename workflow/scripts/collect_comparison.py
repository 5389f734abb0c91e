import sys
from pathlib import Path

from streamlm.records.files import write_jsons
from streamlm.stats import BootstrapConfig
from streamlm.summaries.presses import collect_comparison, read_compression, read_decoding

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

records = collect_comparison(
    dict(zip(snakemake.params.labels, map(read_compression, snakemake.input.runs), strict=True)),
    decoding=read_decoding(snakemake.input.decoding),
    dataset=snakemake.params.dataset,
    capacity=snakemake.params.capacity,
    cfg=BootstrapConfig(**snakemake.params.bootstrap),
)
write_jsons(snakemake.output, records)
