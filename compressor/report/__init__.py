"""What a run tells: its record, and that record as text, tables, pictures and one HTML page."""
