import sys
from pathlib import Path

from streamlm.records.files import read_record, write_json
from streamlm.summaries.sink_mass import collect_sink_mass

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

record = collect_sink_mass(read_record(snakemake.input.mass), read_record(snakemake.input.ablation))
write_json(snakemake.output[0], record)
