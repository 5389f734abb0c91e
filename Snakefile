import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# Rules and scripts find the library beside this file, installed or not; PYTHONPATH carries it into conda's Python.
HERE = str(workflow.current_basedir)
if Path(HERE, "streamlm").is_dir():
    sys.path.insert(0, HERE)
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [HERE, os.getenv("PYTHONPATH")])))
elif workflow.deployment_settings.deployment_method:
    raise WorkflowError(
        "jobs of `streamlm init` run in the environment of snakemake; leave out --sdm, or use a clone"
    )

from streamlm.config import TWINS
from streamlm.experiment import plan, preflight, warm_start
from streamlm.experiment.check import check_config, warn_beyond_training
from streamlm.experiment.config_file import check_file
from streamlm.figures.catalogue import (
    FIGURES,
    MAIN_FIGURES,
    PAPER_FIGURES,
    TASK_FIGURES,
    TWIN_FIGURES,
    fill_caption,
    find_figure,
    measured_on,
)
from streamlm.provenance import ROOT, code_fingerprint

try:
    check_file("config.yaml")
except ValueError as error:
    raise WorkflowError(str(error)) from None


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


try:
    check_config(config, files=workflow.configfiles, command_line=workflow.config_settings.config)
    preflight.check_dates(config)
    preflight.check_results_dir(config, writable=False)
except ValueError as error:
    raise WorkflowError(str(error)) from None
for line in warn_beyond_training(config):
    logger.warning(line)


include: "workflow/rules/common.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/summarise.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/tasks.smk"
include: "workflow/rules/pretraining.smk"
include: "workflow/rules/paper.smk"


onstart:
    try:  # not in a dry run: read-only results can be looked at
        preflight.check_results_dir(config, writable=True)
        if not workflow.deployment_settings.deployment_method:  # else jobs have environments of their own
            preflight.check_libraries({job.rule.name for job in workflow.dag.needrun_jobs()})
    except ValueError as error:
        raise WorkflowError(str(error)) from None
    measuring = [job for job in workflow.dag.needrun_jobs() if job.rule.name.startswith("measure_")]
    if len(measuring) > 1 and workflow.local_exec and not workflow.touch:
        warm_start.start()


# Snakemake 9.27 notes the params and inputs of a failed job as if it had made its output. With older results
# downstream, the next run would then find nothing to do and leave them as they are: spoil the note.
onerror:
    for job in workflow.dag.needrun_jobs():
        for file in job.output:
            note = workflow.persistence.metadata(file)
            if note and not os.path.exists(file):
                note.params = ["the job failed"]
                workflow.persistence._write_record(workflow.persistence._get_key(file), note)


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
        f"{RESULTS}/answer.html",
        f"{RESULTS}/experiment_summary.md",
        f"{RESULTS}/decoding_latency_summary.md",
        f"{RESULTS}/kvpress_summary.md",
        expand(f"{RESULTS}/figures/{{figure}}.{{format}}", figure=MAIN_FIGURES, format=["png", "pdf"]),
        expand(f"{RESULTS}/tables/{{figure}}.{{format}}", figure=MAIN_FIGURES, format=["csv", "tex", "html"]),


# Small models that are trained with and without a sink: table 3 and figures 6 and 7 of the paper.
rule pretraining:
    input:
        expand(f"{RESULTS}/figures/{{figure}}.{{format}}", figure=TWIN_FIGURES, format=["png", "pdf"]),
        expand(f"{RESULTS}/tables/{{figure}}.{{format}}", figure=TWIN_FIGURES, format=["csv", "tex", "html"]),


# What can still be found and asked: StreamEval and tasks of retrieval, presses beside our methods.
rule tasks:
    input:
        expand(f"{RESULTS}/figures/{{figure}}.{{format}}", figure=TASK_FIGURES, format=["png", "pdf"]),
        expand(f"{RESULTS}/tables/{{figure}}.{{format}}", figure=TASK_FIGURES, format=["csv", "tex", "html"]),


# Every table and figure of the paper by its number; takes longer than `all`.
rule paper:
    input:
        rules.all.input,
        rules.pretraining.input,
        f"{RESULTS}/paper.md",
        expand(f"{RESULTS}/figures/{{figure}}.{{format}}", figure=PAPER_FIGURES, format=["png", "pdf"]),
        expand(f"{RESULTS}/tables/{{figure}}.{{format}}", figure=PAPER_FIGURES, format=["csv", "tex", "html"]),
