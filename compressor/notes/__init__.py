"""What stages tell the report: a frozen dataclass for each kind of note, with its JSON, sorted by subject."""
