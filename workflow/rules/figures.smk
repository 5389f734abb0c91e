# Records in, pictures out.


# On a cluster these run where snakemake runs: seconds each, less than a queue would cost.
localrules:
    plot_schemes,
    plot_main_comparison,
    plot_results_summary,
    plot_ablation_window_size,
    plot_ablation_n_sink,
    plot_long_stream,
    plot_decoding_latency,
    plot_implementation_comparison,
    plot_comparison_metrics_table,
    plot_press_sweep,
    write_table,


rule plot_schemes:
    input:
        expand(f"{RESULTS}/streaming_llm/{{corpus}}_result.json", corpus=CORPORA),
    output:
        report(
            f"{RESULTS}/figures/schemes.png",
            caption="../report/schemes.rst",
            category="Figures",
            labels={"figure": FIGURES["schemes"]},
        ),
        f"{RESULTS}/figures/schemes.pdf",
    log:
        f"{RESULTS}/logs/plot_schemes.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_schemes.py"),
    script:
        "../scripts/plot_schemes.py"


rule plot_main_comparison:
    input:
        expand(f"{RESULTS}/streaming_llm/{{corpus}}_result.json", corpus=CORPORA),
    output:
        report(
            f"{RESULTS}/figures/main_comparison.png",
            caption="../report/main_comparison.rst",
            category="Figures",
            labels={"figure": FIGURES["main_comparison"]},
        ),
        f"{RESULTS}/figures/main_comparison.pdf",
    log:
        f"{RESULTS}/logs/plot_main_comparison.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_main_comparison.py"),
    script:
        "../scripts/plot_main_comparison.py"


rule plot_results_summary:
    input:
        expand(f"{RESULTS}/streaming_llm/{{corpus}}_result.json", corpus=CORPORA),
    output:
        report(
            f"{RESULTS}/figures/results_summary.png",
            caption="../report/results_summary.rst",
            category="Figures",
            labels={"figure": FIGURES["results_summary"]},
        ),
        f"{RESULTS}/figures/results_summary.pdf",
    log:
        f"{RESULTS}/logs/plot_results_summary.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_results_summary.py"),
    script:
        "../scripts/plot_results_summary.py"


rule plot_ablation_window_size:
    input:
        f"{RESULTS}/streaming_llm/ablation_window_size.json",
    output:
        report(
            f"{RESULTS}/figures/ablation_window_size.png",
            caption="../report/ablation_window_size.rst",
            category="Figures",
            labels={"figure": FIGURES["ablation_window_size"]},
        ),
        f"{RESULTS}/figures/ablation_window_size.pdf",
    log:
        f"{RESULTS}/logs/plot_ablation_window_size.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_ablation_window_size.py"),
    script:
        "../scripts/plot_ablation_window_size.py"


rule plot_ablation_n_sink:
    input:
        f"{RESULTS}/streaming_llm/ablation_n_sink.json",
    output:
        report(
            f"{RESULTS}/figures/ablation_n_sink.png",
            caption="../report/ablation_n_sink.rst",
            category="Figures",
            labels={"figure": FIGURES["ablation_n_sink"]},
        ),
        f"{RESULTS}/figures/ablation_n_sink.pdf",
    log:
        f"{RESULTS}/logs/plot_ablation_n_sink.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_ablation_n_sink.py"),
    script:
        "../scripts/plot_ablation_n_sink.py"


rule plot_long_stream:
    input:
        expand(f"{RESULTS}/streaming_llm/{{corpus}}_long_stream.json", corpus=CORPORA),
    output:
        report(
            f"{RESULTS}/figures/long_stream.png",
            caption="../report/long_stream.rst",
            category="Figures",
            labels={"figure": FIGURES["long_stream"]},
        ),
        f"{RESULTS}/figures/long_stream.pdf",
    log:
        f"{RESULTS}/logs/plot_long_stream.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_long_stream.py"),
    script:
        "../scripts/plot_long_stream.py"


rule plot_decoding_latency:
    input:
        records=LATENCIES,
        long_run=LONG_RUN,
    output:
        report(
            f"{RESULTS}/figures/decoding_latency.png",
            caption="../report/decoding_latency.rst",
            category="Figures",
            labels={"figure": FIGURES["decoding_latency"]},
        ),
        f"{RESULTS}/figures/decoding_latency.pdf",
    log:
        f"{RESULTS}/logs/plot_decoding_latency.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_decoding_latency.py"),
    script:
        "../scripts/plot_decoding_latency.py"


rule plot_implementation_comparison:
    input:
        expand(f"{RESULTS}/kvpress/{{corpus}}_comparison.json", corpus=CORPORA),
    output:
        report(
            f"{RESULTS}/figures/implementation_comparison.png",
            caption="../report/implementation_comparison.rst",
            category="Figures",
            labels={"figure": FIGURES["implementation_comparison"]},
        ),
        f"{RESULTS}/figures/implementation_comparison.pdf",
    log:
        f"{RESULTS}/logs/plot_implementation_comparison.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_implementation_comparison.py"),
    script:
        "../scripts/plot_implementation_comparison.py"


rule plot_comparison_metrics_table:
    input:
        expand(f"{RESULTS}/kvpress/{{corpus}}_comparison.json", corpus=CORPORA),
    output:
        report(
            f"{RESULTS}/figures/comparison_metrics_table.png",
            caption="../report/comparison_metrics_table.rst",
            category="Figures",
            labels={"figure": FIGURES["comparison_metrics_table"]},
        ),
        f"{RESULTS}/figures/comparison_metrics_table.pdf",
    log:
        f"{RESULTS}/logs/plot_comparison_metrics_table.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_comparison_metrics_table.py"),
    script:
        "../scripts/plot_comparison_metrics_table.py"


rule plot_press_sweep:
    input:
        expand(f"{RESULTS}/kvpress/{{corpus}}_comparison.json", corpus=CORPORA),
    output:
        report(
            f"{RESULTS}/figures/press_sweep.png",
            caption="../report/press_sweep.rst",
            category="Figures",
            labels={"figure": FIGURES["press_sweep"]},
        ),
        f"{RESULTS}/figures/press_sweep.pdf",
    log:
        f"{RESULTS}/logs/plot_press_sweep.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_press_sweep.py"),
    script:
        "../scripts/plot_press_sweep.py"


# The records of a figure, in numbers.
rule write_table:
    input:
        lambda wildcards: getattr(rules, f"plot_{wildcards.figure}").input,
    output:
        report(
            f"{RESULTS}/tables/{{figure}}.html",
            caption="../report/table.rst",
            category="Tables",
            labels=lambda wildcards: {"table": FIGURES[wildcards.figure], "format": "page"},
        ),
        report(
            f"{RESULTS}/tables/{{figure}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels=lambda wildcards: {"table": FIGURES[wildcards.figure], "format": "CSV"},
        ),
        report(
            f"{RESULTS}/tables/{{figure}}.tex",
            caption="../report/table.rst",
            category="Tables",
            labels=lambda wildcards: {"table": FIGURES[wildcards.figure], "format": "LaTeX"},
        ),
    log:
        f"{RESULTS}/logs/write_table/{{figure}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/write_table.py"),
    script:
        "../scripts/write_table.py"
