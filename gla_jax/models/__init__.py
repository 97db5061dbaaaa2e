"""Models by name: the table of known ones, and how a name becomes loaded weights."""
