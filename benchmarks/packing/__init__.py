"""How small files become packed, and how fast they are unpacked."""
