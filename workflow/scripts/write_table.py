import sys
from pathlib import Path

from streamlm.figures.table_files import write_table
from streamlm.records.files import read_record

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

write_table(snakemake.wildcards.figure, [read_record(path) for path in snakemake.input], snakemake.output)
