"""What a run says while it works: bars, lines, and events for programs that listen."""
