import sys
from pathlib import Path

from streamlm.records.files import write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.methods_along import collect_methods_along

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

record = collect_methods_along(snakemake.input, BootstrapConfig(**snakemake.params.bootstrap))
write_json(snakemake.output[0], record)
