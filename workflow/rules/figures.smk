# Records in, pictures and tables out. streamlm/figures/catalogue.py has what is drawn.


# On a cluster this runs where snakemake runs: seconds each, less than a queue would cost.
localrules:
    plot_figure,


# An edit of one figure's module draws that figure alone.
rule plot_figure:
    input:
        records_of,
    output:
        report(
            f"{RESULTS}/figures/{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels=lambda wildcards: {"figure": label_of(wildcards)},
        ),
        f"{RESULTS}/figures/{{figure}}.pdf",
        report(
            f"{RESULTS}/tables/{{figure}}.html",
            caption="../report/table.rst",
            category="Tables",
            labels=lambda wildcards: {"table": label_of(wildcards), "format": "page"},
        ),
        report(
            f"{RESULTS}/tables/{{figure}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels=lambda wildcards: {"table": label_of(wildcards), "format": "CSV"},
        ),
        report(
            f"{RESULTS}/tables/{{figure}}.tex",
            caption="../report/table.rst",
            category="Tables",
            labels=lambda wildcards: {"table": label_of(wildcards), "format": "LaTeX"},
        ),
    log:
        f"{RESULTS}/logs/plot_figure/{{figure}}.log",
    conda:
        "../../envs/streamlm.yaml"
    params:
        caption=lambda wildcards: fill_caption(wildcards.figure, config),
        measured_on=measured_on(config),
        code=lambda wildcards: code_of(
            "workflow/scripts/plot_figure.py", f"streamlm/figures/{wildcards.figure}.py"
        ),
    script:
        "../scripts/plot_figure.py"
