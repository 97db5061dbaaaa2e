"""From class names to unit text features: prompts, tokens, and the bank that the patches are compared with."""
