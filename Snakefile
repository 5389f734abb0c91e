import os
import sys

# Rules and scripts find the library whether it is installed or not; PYTHONPATH carries it into conda's Python.
sys.path.insert(0, workflow.basedir)
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [workflow.basedir, os.getenv("PYTHONPATH")])))

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from streamlm import experiment
from streamlm.config_check import check_config, warn_beyond_training
from streamlm.faults import check_syntax
from streamlm.provenance import code_fingerprint

try:
    check_syntax("config.yaml")
except ValueError as error:
    raise WorkflowError(str(error)) from None


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


try:
    check_config(config, files=workflow.configfiles)
except ValueError as error:
    raise WorkflowError(str(error)) from None
for line in warn_beyond_training(config):
    logger.warning(line)


include: "workflow/rules/common.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/summarise.smk"
include: "workflow/rules/figures.smk"


rule all:
    default_target: True
    input:
        expand(
            f"{RESULTS}/streaming_llm/{{corpus}}_{{part}}.json",
            corpus=CORPORA,
            part=["baseline", "result", "long_stream", "comparison"],
        ),
        expand(f"{RESULTS}/kvpress/{{corpus}}_{{part}}.json", corpus=CORPORA, part=["result", "comparison"]),
        expand(f"{RESULTS}/streaming_llm/ablation_{{kind}}.json", kind=["window_size", "n_sink"]),
        f"{RESULTS}/experiment_summary.md",
        f"{RESULTS}/decoding_latency_summary.md",
        expand(f"{RESULTS}/figures/{{figure}}.{{format}}", figure=FIGURES, format=["png", "pdf"]),
        expand(f"{RESULTS}/tables/{{figure}}.{{format}}", figure=FIGURES, format=["csv", "tex", "html"]),
