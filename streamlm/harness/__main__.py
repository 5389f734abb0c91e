"""The command line of lm-evaluation-harness, with `--model streamlm` among its models."""

import sys

from streamlm.characters import without_steering
from streamlm.extras import need


def main() -> None:
    """Run `lm_eval` with the arguments of this command; what is wrong is one line on stderr."""
    try:
        need("lm_eval")
    except ModuleNotFoundError as error:
        sys.exit(f"streamlm: {error}")
    from lm_eval.__main__ import cli_evaluate

    # lm_eval 0.4.13 asks no entry points: it knows a model once its class is registered in the process.
    import streamlm.harness.model  # noqa: F401

    try:
        cli_evaluate()
    except (ValueError, OSError) as error:
        sys.exit(f"streamlm: {without_steering(' '.join(str(error).split()))}")


if __name__ == "__main__":
    main()
