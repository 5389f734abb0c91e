# From run records to the tables that people read. No model is loaded here.


# On a cluster these run where snakemake runs: seconds each, less than a queue would cost.
localrules:
    collect_result,
    collect_ablation_window_size,
    collect_ablation_n_sink,
    write_summary,
    write_answer,
    collect_long_stream,
    write_latency_summary,
    collect_comparison,
    write_comparison_summary,


rule collect_result:
    input:
        **{method: f"{RESULTS}/runs/{{corpus}}/{label}.json" for method, label in METHODS.items()},
    output:
        baseline=f"{RESULTS}/streaming_llm/{{corpus}}_baseline.json",
        result=f"{RESULTS}/streaming_llm/{{corpus}}_result.json",
    log:
        f"{RESULTS}/logs/collect_result/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/collect_result.py"),
    script:
        "../scripts/collect_result.py"


rule collect_ablation_window_size:
    input:
        dense=expand(f"{RESULTS}/runs/{{corpus}}/dense.json", corpus=CORPORA),
        runs=run_records(plan.window_ablation(config)),
    output:
        f"{RESULTS}/streaming_llm/ablation_window_size.json",
    log:
        f"{RESULTS}/logs/collect_ablation_window_size.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        kind="window_size",
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/collect_ablation.py"),
    script:
        "../scripts/collect_ablation.py"


rule collect_ablation_n_sink:
    input:
        dense=expand(f"{RESULTS}/runs/{{corpus}}/dense.json", corpus=CORPORA),
        runs=run_records(plan.sink_ablation(config)),
    output:
        f"{RESULTS}/streaming_llm/ablation_n_sink.json",
    log:
        f"{RESULTS}/logs/collect_ablation_n_sink.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        kind="n_sink",
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/collect_ablation.py"),
    script:
        "../scripts/collect_ablation.py"


rule write_summary:
    input:
        results=expand(f"{RESULTS}/streaming_llm/{{corpus}}_result.json", corpus=CORPORA),
        ablations=expand(f"{RESULTS}/streaming_llm/ablation_{{kind}}.json", kind=["window_size", "n_sink"]),
    output:
        f"{RESULTS}/experiment_summary.md",
    log:
        f"{RESULTS}/logs/write_summary.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("workflow/scripts/write_summary.py"),
    script:
        "../scripts/write_summary.py"


rule write_answer:
    input:
        results=expand(f"{RESULTS}/streaming_llm/{{corpus}}_result.json", corpus=CORPORA),
        figure=f"{RESULTS}/figures/main_comparison.png",
    output:
        report(
            f"{RESULTS}/answer.html",
            caption="../report/answer.rst",
            category="Answer",
            labels={"answer": "page to hand in"},
        ),
    log:
        f"{RESULTS}/logs/write_answer.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("workflow/scripts/write_answer.py"),
    script:
        "../scripts/write_answer.py"


rule collect_long_stream:
    input:
        expand(
            f"{RESULTS}/runs/{{corpus}}/{{label}}.json",
            label=plan.long_stream_labels(config),
            allow_missing=True,
        ),
    output:
        f"{RESULTS}/streaming_llm/{{corpus}}_long_stream.json",
    log:
        f"{RESULTS}/logs/collect_long_stream/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/collect_long_stream.py"),
    script:
        "../scripts/collect_long_stream.py"


rule write_latency_summary:
    input:
        records=LATENCIES,
        long_run=LONG_RUN,
    output:
        f"{RESULTS}/decoding_latency_summary.md",
    log:
        f"{RESULTS}/logs/write_latency_summary.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("workflow/scripts/write_latency_summary.py"),
    script:
        "../scripts/write_latency_summary.py"


rule collect_comparison:
    input:
        runs=expand(f"{RESULTS}/kvpress/runs/{{press}}.json", press=COMPARED),
        decoding=f"{RESULTS}/kvpress/decoding.json",
    output:
        f"{RESULTS}/kvpress/{{corpus}}_result.json",
        f"{RESULTS}/kvpress/{{corpus}}_comparison.json",
        f"{RESULTS}/streaming_llm/{{corpus}}_comparison.json",
    log:
        f"{RESULTS}/logs/collect_comparison/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        labels=list(COMPARED),
        dataset=lookup(dpath="corpora/{corpus}/title", within=config),
        capacity=config["comparison"]["capacity"],
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/collect_comparison.py"),
    script:
        "../scripts/collect_comparison.py"


rule write_comparison_summary:
    input:
        expand(f"{RESULTS}/kvpress/{{corpus}}_comparison.json", corpus=CORPORA),
    output:
        f"{RESULTS}/kvpress_summary.md",
    log:
        f"{RESULTS}/logs/write_comparison_summary.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("workflow/scripts/write_comparison_summary.py"),
    script:
        "../scripts/write_comparison_summary.py"
