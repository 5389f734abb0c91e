import os
import sys

# Rules and scripts find the library whether or not it is installed; PYTHONPATH carries it into conda's Python.
sys.path.insert(0, workflow.basedir)
os.environ["PYTHONPATH"] = os.pathsep.join([workflow.basedir, *filter(None, [os.environ.get("PYTHONPATH")])])

from snakemake.exceptions import WorkflowError

from streamlm import experiment
from streamlm.provenance import code_fingerprint


configfile: "config.yaml"


try:
    experiment.check_config(config)
except ValueError as error:
    raise WorkflowError(str(error)) from None

RESULTS = config["results_dir"]
MODEL = config["experiment"]["model"]
CORPORA = config["experiment"]["corpora"]
RUNS = experiment.plan_runs(config)
METHODS = experiment.method_labels(config)


def code_of(script):
    """Return the fingerprint of a script and of all project code it imports: a rule with it reruns when they change."""
    return code_fingerprint(f"{workflow.basedir}/workflow/{script}")


def run_records(points):
    """Return the records of (n_sink, window_size) points, corpus by corpus."""
    labels = [experiment.run_label(*point) for point in points]
    return expand(f"{RESULTS}/runs/{{corpus}}/{{label}}.json", corpus=CORPORA, label=labels)


wildcard_constraints:
    corpus="|".join(config["corpora"]),
    model="|".join(config["models"]),
    label="|".join(RUNS),


include: "workflow/rules/sources.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/summarise.smk"
include: "workflow/rules/figures.smk"


rule all:
    default_target: True
    input:
        expand(
            f"{RESULTS}/streaming_llm/{{corpus}}_{{part}}.json", corpus=CORPORA, part=["baseline", "result"]
        ),
        expand(f"{RESULTS}/streaming_llm/ablation_{{kind}}.json", kind=["window_size", "n_sink"]),
        f"{RESULTS}/experiment_summary.md",
        expand(
            f"{RESULTS}/figures/{{name}}.png",
            name=["main_comparison", "ablation_window_size", "ablation_n_sink", "results_summary"],
        ),
