"""What of a teacher's answers a student is drawn to: each a value object with the distance of its paper."""
