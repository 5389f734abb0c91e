# What the paper shows beside the main experiment: measured, collected and written for `snakemake paper`.


# On a cluster these run where snakemake runs: seconds each, less than a queue would cost.
localrules:
    collect_positions,
    collect_methods_along,
    collect_other_model,
    collect_sink_mass,
    write_paper,


rule collect_positions:
    input:
        **{
            where: expand(f"{RESULTS}/runs/{{corpus}}/{{label}}.json", label=labels, allow_missing=True)
            for where, labels in plan.positions_labels(config).items()
        },
    output:
        f"{RESULTS}/paper/{{corpus}}_positions.json",
    log:
        f"{RESULTS}/logs/collect_positions/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/collect_positions.py"),
    script:
        "../scripts/collect_positions.py"


rule collect_methods_along:
    input:
        expand(
            f"{RESULTS}/runs/{{corpus}}/{{label}}.json",
            label=plan.methods_along_labels(config),
            allow_missing=True,
        ),
    output:
        f"{RESULTS}/paper/{{corpus}}_methods_along.json",
    log:
        f"{RESULTS}/logs/collect_methods_along/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/collect_methods_along.py"),
    script:
        "../scripts/collect_methods_along.py"


# Of every other model, its results being an experiment of its own that `verify` takes.
use rule measure_perplexity as measure_other_model with:
    input:
        model=lambda wildcards: plan.model_folder(config, wildcards.model),
        model_files=lambda wildcards: plan.model_files(config, wildcards.model),
        tokens="data/tokens/{model}/{corpus}.npy",
    output:
        record=f"{RESULTS}/models/{{model}}/runs/{{corpus}}/{{label}}.json",
        losses=f"{RESULTS}/models/{{model}}/runs/{{corpus}}/{{label}}.npy",
    log:
        f"{RESULTS}/models/{{model}}/logs/measure_perplexity/{{corpus}}/{{label}}.log",
    params:
        title=lookup(dpath="models/{model}/title", within=config),
        files=lambda wildcards: preflight.file_marks(config, "models", wildcards.model),
        dataset=lookup(dpath="corpora/{corpus}/title", within=config),
        run=lookup(dpath="{label}", within=RUNS),
        checkpoint=f"{RESULTS}/models/{{model}}/checkpoints/{{corpus}}/{{label}}.safetensors",
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_perplexity.py"),


use rule collect_methods_along as collect_other_model with:
    input:
        expand(
            f"{RESULTS}/models/{{model}}/runs/{{corpus}}/{{label}}.json",
            label=plan.methods_along_labels(config),
            allow_missing=True,
        ),
    output:
        f"{RESULTS}/models/{{model}}/paper/{{corpus}}_methods_along.json",
    log:
        f"{RESULTS}/models/{{model}}/logs/collect_methods_along/{{corpus}}.log",


rule measure_attention_maps:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{{corpus}}.npy",
    output:
        record=f"{RESULTS}/paper/{{corpus}}_attention_maps.json",
        maps=f"{RESULTS}/paper/{{corpus}}_attention_maps.npy",
    log:
        f"{RESULTS}/logs/measure_attention_maps/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=lookup(dpath="corpora/{corpus}/title", within=config),
        sentences=config["paper"]["attention_maps"],
        compute=config["compute"],
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_attention_maps.py"),
    script:
        "../scripts/measure_attention_maps.py"


rule measure_sink_mass:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{{corpus}}.npy",
    output:
        f"{RESULTS}/paper/runs/{{corpus}}_sink_mass.json",
    log:
        f"{RESULTS}/logs/measure_sink_mass/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=lookup(dpath="corpora/{corpus}/title", within=config),
        sizes=plan.sink_mass_sizes(config),
        compute=config["compute"] | {"dtype": config["paper"]["sink_mass"]["dtype"]},
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_sink_mass.py"),
    script:
        "../scripts/measure_sink_mass.py"


rule collect_sink_mass:
    input:
        mass=f"{RESULTS}/paper/runs/{{corpus}}_sink_mass.json",
        ablation=f"{RESULTS}/streaming_llm/ablation_n_sink.json",
    output:
        f"{RESULTS}/paper/{{corpus}}_sink_mass.json",
    log:
        f"{RESULTS}/logs/collect_sink_mass/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("workflow/scripts/collect_sink_mass.py"),
    script:
        "../scripts/collect_sink_mass.py"


rule measure_sink_tokens:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{{corpus}}.npy",
    output:
        record=f"{RESULTS}/paper/{{corpus}}_sink_tokens.json",
        losses=f"{RESULTS}/paper/{{corpus}}_sink_tokens.npy",
    log:
        f"{RESULTS}/logs/measure_sink_tokens/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=lookup(dpath="corpora/{corpus}/title", within=config),
        n_tokens=config["experiment"]["max_eval_tokens"],
        cfg=RUNS[METHODS["streaming"]]["cfg"],
        compute=config["compute"],
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_sink_tokens.py"),
    script:
        "../scripts/measure_sink_tokens.py"


PAPER_RECORDS = {
    **{
        name: [f"{RESULTS}/streaming_llm/{name}.json"] for name in ("ablation_n_sink", "ablation_window_size")
    },
    **{
        name: expand(f"{RESULTS}/{find_figure(name).records.pattern}", corpus=CORPORA)
        for name in PAPER_FIGURES
    },
    "twins": [f"{RESULTS}/paper/twins.json"],
}


rule write_paper:
    input:
        **PAPER_RECORDS,
    output:
        f"{RESULTS}/paper.md",
    log:
        f"{RESULTS}/logs/write_paper.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        code=code_of("workflow/scripts/write_paper.py"),
    script:
        "../scripts/write_paper.py"
