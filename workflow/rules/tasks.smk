# What still works when a cache forgets, and what batches cost. All import kvpress, as the comparison does.


rule measure_stream_eval:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
    output:
        f"{RESULTS}/paper/stream_eval.json",
    log:
        f"{RESULTS}/logs/measure_stream_eval.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        **plan.stream_eval_settings(config),
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        compute=config["compute"],
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_stream_eval.py"),
    script:
        "../scripts/measure_stream_eval.py"


rule measure_retrieval:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{CORPORA[-1]}.npy",
    output:
        f"{RESULTS}/tasks/retrieval.json",
    log:
        f"{RESULTS}/logs/measure_retrieval.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        **plan.retrieval_settings(config),
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=config["corpora"][CORPORA[-1]]["title"],
        compute=config["compute"] | {"dtype": config["tasks"]["dtype"]},
        bootstrap=config["bootstrap"],
        code=code_of("workflow/scripts/measure_retrieval.py"),
    script:
        "../scripts/measure_retrieval.py"


rule measure_batches:
    input:
        model=plan.model_folder(config, MODEL),
        model_files=plan.model_files(config, MODEL),
        tokens=f"data/tokens/{MODEL}/{CORPORA[0]}.npy",
    output:
        f"{RESULTS}/tasks/batches.json",
    log:
        f"{RESULTS}/logs/measure_batches.log",
    conda:
        "../../envs/streamlm.yaml"
    threads: workflow.cores
    resources:
        **GPU,
    params:
        **plan.batch_settings(config),
        title=config["models"][MODEL]["title"],
        files=preflight.file_marks(config, "models", MODEL),
        dataset=config["corpora"][CORPORA[0]]["title"],
        compute=config["compute"] | {"dtype": config["tasks"]["dtype"]},
        code=code_of("workflow/scripts/measure_batches.py"),
    script:
        "../scripts/measure_batches.py"
