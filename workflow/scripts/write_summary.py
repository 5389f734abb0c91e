import sys
from pathlib import Path

from streamlm.records.files import read_record, write_text
from streamlm.summaries.answer import experiment_summary

sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w", buffering=1)

text = experiment_summary(
    results=[read_record(path) for path in snakemake.input.results],
    ablations=[read_record(path) for path in snakemake.input.ablations],
)
write_text(snakemake.output[0], text)
