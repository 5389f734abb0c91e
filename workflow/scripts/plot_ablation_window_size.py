import sys
from pathlib import Path

from streamlm.figures.main import plot_ablation_window_size
from streamlm.figures.style import save_figures
from streamlm.records.files import read_record

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

save_figures(snakemake.output, plot_ablation_window_size(read_record(snakemake.input[0])))
