"""lm-evaluation-harness over a family's exits."""
