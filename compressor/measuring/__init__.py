"""The only place numbers come from: scores, bytes, milliseconds and MACs of the file that ships."""
