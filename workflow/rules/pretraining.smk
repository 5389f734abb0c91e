# Small models, trained here as usual and with a sink, and what they lose with fewer sinks.


# On a cluster this runs where snakemake runs: seconds, less than a queue would cost.
localrules:
    collect_twins,


TWIN = f"{RESULTS}/twins/{{twin}}_seed{{seed}}"
SAMPLES = expand("data/{corpus}/sample.json", corpus=CORPORA)
TWIN_TEXT = " and ".join(TITLES)


# A twin is so small that a GPU or a second thread would slow it: --cores 2 trains two at a time.
TWIN_COMPUTE = {"device": "cpu", "torch_threads": 1}


rule train_twin:
    input:
        samples=SAMPLES,
    output:
        model=directory(TWIN),
        record=f"{TWIN}.json",
    log:
        f"{RESULTS}/logs/train_twin/{{twin}}_seed{{seed}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        twin=lambda wildcards: wildcards.twin,
        seed=lambda wildcards: int(wildcards.seed),
        shape=plan.twin_settings(config, "layers", "hidden", "heads", "context_tokens"),
        training=plan.twin_settings(config, "steps", "batch", "learning_rate"),
        scored_bytes=config["paper"]["pretraining"]["scored_bytes"],
        dataset=TWIN_TEXT,
        checkpoint=f"{RESULTS}/checkpoints/twins/{{twin}}_seed{{seed}}.safetensors",
        compute=config["compute"] | TWIN_COMPUTE,
        code=code_of("workflow/scripts/train_twin.py"),
    script:
        "../scripts/train_twin.py"


rule measure_twin:
    input:
        model=TWIN,
        training=f"{TWIN}.json",
        samples=SAMPLES,
    output:
        record=f"{RESULTS}/paper/twins/{{twin}}_seed{{seed}}.json",
        losses=f"{RESULTS}/paper/twins/{{twin}}_seed{{seed}}.npy",
    log:
        f"{RESULTS}/logs/measure_twin/{{twin}}_seed{{seed}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        sinks=plan.twin_settings(config, "n_sinks", "capacity"),
        scored_bytes=config["paper"]["pretraining"]["scored_bytes"],
        dataset=TWIN_TEXT,
        compute=config["compute"] | TWIN_COMPUTE,
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_twin.py"),
    script:
        "../scripts/measure_twin.py"


rule collect_twins:
    input:
        expand(
            f"{RESULTS}/paper/twins/{{twin}}_seed{{seed}}.json",
            twin=TWINS,
            seed=config["paper"]["pretraining"]["seeds"],
        ),
    output:
        f"{RESULTS}/paper/twins.json",
    log:
        f"{RESULTS}/logs/collect_twins.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("workflow/scripts/collect_twins.py"),
    script:
        "../scripts/collect_twins.py"
