# One job and one record per distinct configuration; everything shown is drawn from these.


rule measure_perplexity:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{{corpus}}.npy",
    output:
        record=f"{RESULTS}/runs/{{corpus}}/{{label}}.json",
        losses=f"{RESULTS}/runs/{{corpus}}/{{label}}.npy",
    log:
        f"{RESULTS}/logs/measure_perplexity/{{corpus}}/{{label}}.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=lookup(dpath="corpora/{corpus}/title", within=config),
        run=lookup(dpath="{label}", within=RUNS),
        checkpoint=f"{RESULTS}/checkpoints/{{corpus}}/{{label}}.safetensors",
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_perplexity.py"),
    script:
        "../scripts/measure_perplexity.py"


# Methods are compared turn by turn, so one job times all of one capacity.
rule measure_latency:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{CORPORA[0]}.npy",
    output:
        LATENCY,
    log:
        f"{RESULTS}/logs/measure_latency/{{capacity}}.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=config["corpora"][CORPORA[0]]["title"],
        cases=plan.latency_cases(config),
        latency=plan.latency_settings(config),
        compute=config["compute"],
        code=code_of("workflow/scripts/measure_latency.py"),
    script:
        "../scripts/measure_latency.py"


rule measure_long_run:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{CORPORA[0]}.npy",
    output:
        LONG_RUN,
    log:
        f"{RESULTS}/logs/measure_long_run.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=config["corpora"][CORPORA[0]]["title"],
        cfg=plan.long_run_geometry(config),
        tokens=config["decoding_latency"]["long_run"]["tokens"],
        compute=config["compute"],
        code=code_of("workflow/scripts/measure_long_run.py"),
    script:
        "../scripts/measure_long_run.py"


# kvpress changes transformers when imported: these two rules do so, and those of tasks.smk, each job in its own
# process.
rule measure_compression:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=expand(f"data/tokens/{MODEL}/{{corpus}}.npy", corpus=CORPORA),
    output:
        record=f"{RESULTS}/kvpress/runs/{{press}}.json",
        scores=f"{RESULTS}/kvpress/runs/{{press}}.npy",
    log:
        f"{RESULTS}/logs/measure_compression/{{press}}.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        datasets=TITLES,
        options=lookup(dpath="{press}", within=COMPARED),
        contexts=plan.compared_contexts(config),
        compute=config["compute"],
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_compression.py"),
    script:
        "../scripts/measure_compression.py"


rule measure_decoding:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=expand(f"data/tokens/{MODEL}/{{corpus}}.npy", corpus=CORPORA),
    output:
        record=f"{RESULTS}/kvpress/decoding.json",
        scores=f"{RESULTS}/kvpress/decoding.npy",
    log:
        f"{RESULTS}/logs/measure_decoding.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        datasets=TITLES,
        n_sink=config["comparison"]["n_sink"],
        decode=plan.compared_decoding(config),
        compute=config["compute"],
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_decoding.py"),
    script:
        "../scripts/measure_decoding.py"
