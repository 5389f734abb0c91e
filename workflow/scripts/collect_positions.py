import sys
from pathlib import Path

from streamlm.records.files import write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.positions import collect_positions

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

cfg = BootstrapConfig(**snakemake.params.bootstrap)
record = collect_positions(snakemake.input.in_cache, snakemake.input.in_text, cfg)
write_json(snakemake.output[0], record)
