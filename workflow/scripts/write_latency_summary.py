import sys
from pathlib import Path

from streamlm.records.files import read_record, write_text
from streamlm.summaries.latency import latency_summary

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

records = [read_record(path) for path in snakemake.input.records]
write_text(snakemake.output[0], latency_summary(records, read_record(snakemake.input.long_run)))
