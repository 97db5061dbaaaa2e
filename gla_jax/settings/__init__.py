"""From what a user types to frozen settings."""
