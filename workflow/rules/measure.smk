# One job and one record per distinct configuration; everything shown is drawn from these.


rule measure_perplexity:
    input:
        model=experiment.model_folder(config, MODEL),
        model_files=experiment.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{{corpus}}.npy",
    output:
        record=f"{RESULTS}/runs/{{corpus}}/{{label}}.json",
        losses=f"{RESULTS}/runs/{{corpus}}/{{label}}.npy",
    log:
        f"{RESULTS}/logs/measure_perplexity/{{corpus}}/{{label}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_perplexity/{{corpus}}/{{label}}.tsv"
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        title=config["models"][MODEL]["title"],
        dataset=lookup(dpath="corpora/{corpus}/title", within=config),
        max_eval_tokens=config["experiment"]["max_eval_tokens"],
        run=lookup(dpath="{label}", within=RUNS),
        compute=config["compute"],
        bootstrap=config["bootstrap"],
        code=code_of("scripts/measure_perplexity.py"),
    script:
        "../scripts/measure_perplexity.py"
