# Names that the rules share. The library does the planning.

RESULTS = config["results_dir"]
MODEL = config["experiment"]["model"]
MORE_MODELS = config["paper"]["models"]
CORPORA = config["experiment"]["corpora"]
RUNS = plan.plan_runs(config)
METHODS = plan.method_labels(config)
COMPARED = plan.plan_comparison(config)
GPU = {} if config["compute"]["device"] == "cpu" else {"gpu": 1}  # what a measuring job asks for
TITLES = [config["corpora"][corpus]["title"] for corpus in CORPORA]


def code_of(script, *modules):
    """Return the fingerprint of code and all that it imports of ours: a rule with it reruns when they change."""
    return code_fingerprint(f"{HERE}/{script}", *(ROOT / module for module in modules))


def records_of(wildcards):
    """Return the records that a figure takes, in its order."""
    records = find_figure(wildcards.figure).records
    folders = [plan.results_of(config, model) for model in [MODEL, *MORE_MODELS * records.of_models]]
    paths = [f"{folder}/{records.pattern.format(corpus=corpus)}" for folder in folders for corpus in CORPORA]
    return [*(LATENCIES if records.before else []), *dict.fromkeys(paths)]


def label_of(wildcards):
    """Return the name of a figure in the contents of the report."""
    return f"{FIGURES.index(wildcards.figure) + 1:02}. {find_figure(wildcards.figure).short_title}"


# Decoding is timed on the first text.
LATENCY = [
    f"{RESULTS}/decoding_latency_{plan.latency_label(method, '{capacity}', n_sink)}.json"
    for method, n_sink in plan.latency_cases(config)
]
LATENCIES = expand(LATENCY, capacity=config["decoding_latency"]["capacities"])
LONG_RUN = f"{RESULTS}/decoding_latency_long_run.json"


def run_records(points):
    """Return the run records of some geometries, corpus by corpus."""
    labels = [plan.run_label(cfg) for cfg in points]
    return expand(f"{RESULTS}/runs/{{corpus}}/{{label}}.json", corpus=CORPORA, label=labels)


wildcard_constraints:
    corpus="|".join(config["corpora"]),
    model="|".join(config["models"]),
    label="|".join(RUNS),
    press="|".join(COMPARED),
    capacity="[0-9]+",
    figure="|".join(FIGURES),
    twin="|".join(TWINS),
    seed="[0-9]+",
