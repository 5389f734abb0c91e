"""lm-evaluation-harness with eviction in force: `python -m streamlm.harness --model streamlm`."""
