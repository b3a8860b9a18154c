"""The one training loop, with its optimizer, number format, random replay, snapshots and teacher."""
