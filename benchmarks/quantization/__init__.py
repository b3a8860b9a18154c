"""What integers bring, and what they take."""
