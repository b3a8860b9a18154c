"""What a file was asked besides its score, as tables, pictures and lines."""
