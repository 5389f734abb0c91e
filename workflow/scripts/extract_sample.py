import sys
from pathlib import Path

from streamlm.sources.corpus import extract_documents, write_sample

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

source = snakemake.params.source
documents = extract_documents(source, Path(snakemake.input[0]))
write_sample(Path(snakemake.output[0]), snakemake.params.title, source, documents)
