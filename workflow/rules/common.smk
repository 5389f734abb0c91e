# Names that the rules share. The library does the planning.

RESULTS = config["results_dir"]
MODEL = config["experiment"]["model"]
CORPORA = config["experiment"]["corpora"]
RUNS = plan.plan_runs(config)
METHODS = plan.method_labels(config)
COMPARED = plan.plan_comparison(config)
GPU = {} if config["compute"]["device"] == "cpu" else {"gpu": 1}  # what a measuring job asks for
TITLES = [config["corpora"][corpus]["title"] for corpus in CORPORA]

# Every figure, in the order in which a report shows them.
FIGURES = {
    "schemes": "01. Four schemes",
    "main_comparison": "02. Main comparison",
    "results_summary": "03. Main comparison in numbers",
    "ablation_window_size": "04. Window size",
    "ablation_n_sink": "05. Number of sinks",
    "long_stream": "06. Long stream",
    "decoding_latency": "07. Cost of a decoded token",
    "implementation_comparison": "08. Beside kvpress: decoding",
    "press_sweep": "09. Beside kvpress: budgets",
    "comparison_metrics_table": "10. Beside kvpress in numbers",
}


def code_of(script):
    """Return the fingerprint of a script and of all project code it imports: a rule with it reruns when they change."""
    return code_fingerprint(f"{workflow.basedir}/workflow/{script}")


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
