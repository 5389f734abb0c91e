import sys
from pathlib import Path

from streamlm.records.files import read_record, write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.main import collect_result

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

runs = dict(snakemake.input.items())
write_json(snakemake.output.baseline, read_record(runs["dense"]))
write_json(snakemake.output.result, collect_result(runs, BootstrapConfig(**snakemake.params.bootstrap)))
