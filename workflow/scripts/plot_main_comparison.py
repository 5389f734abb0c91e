import sys
from pathlib import Path

from streamlm.figures.main import plot_main_comparison
from streamlm.figures.style import save_figures
from streamlm.records.files import read_record

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

save_figures(snakemake.output, plot_main_comparison([read_record(path) for path in snakemake.input]))
