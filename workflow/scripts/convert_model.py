import sys
from pathlib import Path

from streamlm.sources.gguf import convert_model

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

convert_model(
    snakemake.params.source,
    file=Path(snakemake.input[0]),
    out_dir=Path(snakemake.output[0]),
    title=snakemake.params.title,
)
