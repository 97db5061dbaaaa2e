"""From class names to text embeddings: prompts, tokens, and a row of length one for every prompt."""
