import sys
from pathlib import Path

from streamlm.figures.latency import plot_decoding_latency
from streamlm.figures.style import save_figures
from streamlm.records.files import read_record

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

records = [read_record(path) for path in snakemake.input.records]
save_figures(snakemake.output, plot_decoding_latency(records, read_record(snakemake.input.long_run)))
