import sys
from importlib import import_module
from pathlib import Path

from streamlm.figures.style import save_figures
from streamlm.figures.table_files import write_tables
from streamlm.records.files import read_record

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

name = snakemake.wildcards.figure
figure = import_module(f"streamlm.figures.{name}").FIGURE
records = [read_record(path) for path in snakemake.input]
save_figures(snakemake.output[:2], figure.plot(records))
write_tables(figure, name, records, snakemake.output[2:])
