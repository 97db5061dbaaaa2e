"""Areas per class and boundary error rates: integer counts that add up."""
