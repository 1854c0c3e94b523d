"""What completions of benchmark problems come to: pass@k, maj@k, cost, intervals, the files of an evaluation."""
