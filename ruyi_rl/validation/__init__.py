"""What must hold before a run starts, checked without torch: `validate` refuses with the key, the value, the remedy."""

from ruyi_rl.validation.run import validate

__all__ = ["validate"]
