import sys
from pathlib import Path

from streamlm.sources.corpus import write_sample
from streamlm.sources.hub_errors import one_line
from streamlm.sources.hub_texts import fetch_documents

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

with one_line():
    documents, source = fetch_documents(snakemake.params.source)
write_sample(Path(snakemake.output[0]), snakemake.params.title, source, documents)
