"""The entry of `streamlm` and `python -m streamlm`: it says in one line which extra is missing."""

import sys


def main() -> None:
    """Run the command."""
    from streamlm.extras import EXTRAS, missing

    try:
        from streamlm.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        sys.exit(f"streamlm: {missing(error.name)}")


if __name__ == "__main__":
    main()
