"""The vision and text transformers as Linen modules that own parameters and return named intermediates."""
