import sys
from pathlib import Path

from streamlm.sources.hub import fetch_model
from streamlm.sources.hub_errors import one_line

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

with one_line():
    fetch_model(snakemake.params.source, out_dir=Path(snakemake.output[0]), title=snakemake.params.title)
