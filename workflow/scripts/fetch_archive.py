import sys
from pathlib import Path

from streamlm.sources.archives import fetch_archive

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

fetch_archive(dict(snakemake.params.items()), Path(snakemake.output[0]))
