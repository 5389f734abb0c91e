import sys
from pathlib import Path

from streamlm.records.files import read_record, write_json
from streamlm.summaries.twins import collect_twins

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

write_json(snakemake.output[0], collect_twins(list(map(read_record, snakemake.input))))
