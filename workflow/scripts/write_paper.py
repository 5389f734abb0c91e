import sys
from pathlib import Path

from streamlm.records.files import read_record, write_text
from streamlm.summaries.paper import paper_page

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

records = {name: [read_record(path) for path in paths] for name, paths in snakemake.input.items()}
write_text(snakemake.output[0], paper_page(records))
