"""What a cross-validation tells: its record, and that record as text, tables and one HTML page."""
