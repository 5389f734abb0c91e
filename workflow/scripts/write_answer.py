import sys
from pathlib import Path

from streamlm.records.files import read_record, write_text
from streamlm.summaries.answer import answer_page

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

results = [read_record(path) for path in snakemake.input.results]
write_text(snakemake.output[0], answer_page(results, Path(snakemake.input.figure).read_bytes()))
