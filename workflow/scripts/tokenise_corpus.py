import sys
from pathlib import Path

from streamlm.records.files import write_array
from streamlm.sources.corpus import read_sample, tokenise_documents

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

ids = tokenise_documents(
    read_sample(Path(snakemake.input.sample)).documents,
    Path(snakemake.input.model),
    add_bos=snakemake.params.add_bos,
    max_samples=snakemake.params.max_samples,
)
write_array(snakemake.output[0], ids)
