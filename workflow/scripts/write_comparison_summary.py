import sys
from pathlib import Path

from streamlm.records.files import read_record, write_text
from streamlm.summaries.press_findings import comparison_summary

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

write_text(snakemake.output[0], comparison_summary([read_record(path) for path in snakemake.input]))
