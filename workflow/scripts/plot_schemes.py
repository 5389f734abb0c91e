import sys
from pathlib import Path

from streamlm.figures.schemes import plot_schemes
from streamlm.figures.style import save_figures
from streamlm.records.files import read_record

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

save_figures(snakemake.output, plot_schemes([read_record(path) for path in snakemake.input]))
