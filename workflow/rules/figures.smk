# Records in, pictures out.


# On a cluster these run where snakemake runs: seconds each, less than a queue would cost.
localrules:
    plot_main_comparison,
    plot_results_summary,
    plot_ablation_window_size,
    plot_ablation_n_sink,
    plot_long_stream,
    plot_decoding_latency,
    plot_implementation_comparison,
    plot_comparison_metrics_table,
    plot_press_sweep,


rule plot_main_comparison:
    input:
        expand(f"{RESULTS}/streaming_llm/{{corpus}}_result.json", corpus=CORPORA),
    output:
        f"{RESULTS}/figures/main_comparison.png",
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
        f"{RESULTS}/figures/results_summary.png",
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
        f"{RESULTS}/figures/ablation_window_size.png",
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
        f"{RESULTS}/figures/ablation_n_sink.png",
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
        f"{RESULTS}/figures/long_stream.png",
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
        f"{RESULTS}/figures/decoding_latency.png",
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
        f"{RESULTS}/figures/implementation_comparison.png",
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
        f"{RESULTS}/figures/comparison_metrics_table.png",
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
        f"{RESULTS}/figures/press_sweep.png",
    log:
        f"{RESULTS}/logs/plot_press_sweep.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("scripts/plot_press_sweep.py"),
    script:
        "../scripts/plot_press_sweep.py"
